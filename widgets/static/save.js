// Saves the notebook that the page shows, as Ctrl-S does: JupyterLab and Notebook 7 give a widget no other way.
const isMac = /Mac|iP(hone|ad)/.test(navigator.platform);

export default {
  initialize({ model }) {
    // another document in front would be saved in its stead
    if (!document.title.includes(model.get("name"))) return;
    const keys = { key: "s", code: "KeyS", keyCode: 83, which: 83, ctrlKey: !isMac, metaKey: isMac };
    document.body.dispatchEvent(new KeyboardEvent("keydown", { ...keys, bubbles: true, cancelable: true }));
  },
};
