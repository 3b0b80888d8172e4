// The live panel: asks the kernel for everything (BokehJS too), draws it, appends what comes. No network, no state kept
// in the notebook. Messages: see widgets/page/wire.py.
import { State } from "./state.js";

// anywidget hands initialize and render two different faces of one model: the panel's id tells that they are one
const states = new Map();

function stateOf(model) {
  const id = model.get("panel_id");
  if (!states.has(id)) states.set(id, new State(model));
  return states.get(id);
}

export default {
  initialize({ model }) {
    const state = stateOf(model);
    return () => {
      states.delete(model.get("panel_id"));
      state.dispose();
    };
  },
  render({ model, el }) {
    return stateOf(model).show(el);
  },
};
