// Saves the notebook by sending the keys Ctrl-S: JupyterLab and Notebook 7 offer widgets no other way.
const isMac = /Mac|iP(hone|ad)/.test(navigator.platform);

export default {
  initialize({ model }) {
    // if another document were in front, the keys would save that one
    if (!document.title.includes(model.get("name"))) return;
    const keys = { key: "s", code: "KeyS", keyCode: 83, which: 83, ctrlKey: !isMac, metaKey: isMac };
    document.body.dispatchEvent(new KeyboardEvent("keydown", { ...keys, bubbles: true, cancelable: true }));
  },
};
