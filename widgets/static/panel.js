// The live panel: requests everything from the kernel (including BokehJS), draws it, and appends new data. It needs no
// network and stores no state in the notebook. Messages: see widgets/page/wire.py.
import { watchLostOutputs } from "./reload.js";
import { State } from "./state.js";

// anywidget passes two different proxies of one model to initialize and render; the panel's id identifies the model
const states = new Map();

function stateOf(model) {
  const id = model.get("panel_id");
  if (!states.has(id)) states.set(id, new State(model));
  return states.get(id);
}

export default {
  initialize({ model }) {
    const state = stateOf(model);
    const endWatch = watchLostOutputs(model);
    return () => {
      endWatch();
      states.delete(model.get("panel_id"));
      state.dispose();
    };
  },
  render({ model, el }) {
    return stateOf(model).show(el);
  },
};
