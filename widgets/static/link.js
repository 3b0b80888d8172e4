// Detects whether the kernel of a widget still responds. The front end reports a restart; otherwise the kernel counts as
// gone after a period of silence, as it sends a message every few seconds while a run is live.

const LOOK_EVERY_MS = 1000;
const ASK_AFTER_MS = 5000;
const SILENT_AFTER_MS = 20_000;
const FIRST_AGAIN_MS = 8000;
const LAST_AGAIN_MS = 64_000;

export const GONE = "The kernel has ended or was restarted";
export const SILENT = "The kernel does not respond: it has ended or is busy";

export class Link {
  // due(): whether messages are expected; ask(): sends the kernel a message that it answers; changed(trouble): called
  // with a description of the problem, "" when the kernel responds; lacking(): whether the first content is missing,
  // which begin() requests: a message, or its answer, is lost when the connection is cut
  constructor(model, { due, ask, changed, lacking, begin }) {
    Object.assign(this, { model, due, ask, changed, lacking, begin, trouble: "" });
    this.heardAt = this.lookedAt = this.begunAt = Date.now();
    this.againMs = FIRST_AGAIN_MS;
    this.onGone = () => this.say(GONE);
    for (const name of ["comm_live_update", "comm:close"]) model.on(name, this.onGone);
    this.timer = setInterval(() => this.look(), LOOK_EVERY_MS);
  }

  heard() {
    this.heardAt = Date.now();
    this.say("");
  }

  look(now = Date.now()) {
    const slept = now - this.lookedAt > 5 * LOOK_EVERY_MS; // the machine slept, or the page was in the background
    this.lookedAt = now;
    if (this.lacking() && now - this.begunAt > this.againMs && this.trouble !== GONE) {
      this.begunAt = now;
      this.againMs = Math.min(2 * this.againMs, LAST_AGAIN_MS);
      this.send(this.begin);
    }
    if (slept || !this.due() || this.trouble) {
      if (!this.trouble) this.heardAt = now;
      return;
    }
    const silence = now - this.heardAt;
    if (silence > SILENT_AFTER_MS) this.say(SILENT);
    else if (silence > ASK_AFTER_MS) this.send(this.ask);
  }

  // Calls act(), which sends a message. The front end throws if the kernel was shut down.
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
