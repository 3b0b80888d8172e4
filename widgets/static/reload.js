// Shows outputs that a page lost while it was loaded again. An output asks jupyterlab_widgets for its widget; when the
// widget becomes known between the failed request and the handling of the failure (WidgetRenderer.renderModel of
// version 3.0.17), the output says "model not found" for good. See docs/upstream.md.
const LOST = "Error displaying widget: model not found";
const VIEW = "application/vnd.jupyter.widget-view+json";
const SETTLED_MS = 1000;

// Looks once the widgets of the page are restored. Returns a function that ends the watch.
export function watchLostOutputs(model) {
  const manager = model.widget_manager;
  let timer;
  const look = () => {
    clearTimeout(timer);
    timer = setTimeout(() => void showLostOutputs(manager), SETTLED_MS);
  };
  manager?.restored?.connect(look);
  look();
  return () => {
    clearTimeout(timer);
    manager?.restored?.disconnect(look);
  };
}

async function showLostOutputs(manager) {
  const isLost = [...document.querySelectorAll(".jp-OutputArea-output")].some((node) => node.textContent === LOST);
  if (!isLost) return;
  for (const cell of manager?.context?.model?.cells ?? []) {
    for (let i = 0; i < (cell.outputs?.length ?? 0); i++) {
      const output = cell.outputs.get(i);
      const id = output.data[VIEW]?.model_id;
      if (!id || !manager.has_model(id)) continue;
      const views = (await manager.get_model(id)).views ?? {};
      // an output is rendered again when its data are set
      if (!Object.keys(views).length) output.setData({ data: { ...output.data }, metadata: { ...output.metadata } });
    }
  }
}
