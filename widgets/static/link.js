// Whether the kernel behind a widget is still there. A front end says so where it knows (a restart); otherwise silence
// does, since the kernel's side sends something every few seconds for as long as it has anything to show.

const LOOK_EVERY_MS = 1000;
const ASK_AFTER_MS = 5000;
const SILENT_AFTER_MS = 20_000;

export const GONE = "The kernel behind this has ended or was restarted: what is drawn stays as it was";
export const SILENT = "No word from the kernel: it is gone, or very busy";

export class Link {
  // due(): whether messages are to be expected; ask(): send the kernel anything; changed(trouble): "" when all is well
  constructor(model, { due, ask, changed }) {
    Object.assign(this, { model, due, ask, changed, trouble: "", heardAt: Date.now(), lookedAt: Date.now() });
    this.onGone = () => this.say(GONE);
    for (const name of ["comm_live_update", "comm:close"]) model.on(name, this.onGone);
    this.timer = setInterval(() => this.look(), LOOK_EVERY_MS);
  }

  heard() {
    this.heardAt = Date.now();
    this.say("");
  }

  look(now = Date.now()) {
    const slept = now - this.lookedAt > 5 * LOOK_EVERY_MS; // the machine, or a page in the background
    this.lookedAt = now;
    if (slept || !this.due() || this.trouble) {
      if (!this.trouble) this.heardAt = now;
      return;
    }
    const silence = now - this.heardAt;
    if (silence > SILENT_AFTER_MS) this.say(SILENT);
    else if (silence > ASK_AFTER_MS) this.send(this.ask);
  }

  // What is sent to a kernel that was shut down is refused by the front end.
  send(act) {
    try {
      act();
    } catch (error) {
      console.warn("panel: the kernel cannot be reached:", error);
      this.say(GONE);
    }
  }

  say(trouble) {
    if (trouble === this.trouble) return;
    this.trouble = trouble;
    this.changed(trouble);
  }

  dispose() {
    clearInterval(this.timer);
    for (const name of ["comm_live_update", "comm:close"]) this.model.off(name, this.onGone);
  }
}
