// The realtime socket: OpenAI's event names, one session for as long as model and key stay the same.

export class Live {
  constructor(onEvent) {
    this.onEvent = onEvent;
    this.items = [];
  }

  async connect(model, key) {
    if (this.socket?.readyState === WebSocket.OPEN && this.model === model && this.key === key) return;
    this.close();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    const socket = new WebSocket(`${scheme}://${location.host}/v1/realtime?model=${encodeURIComponent(model)}`, protocols);
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = () => reject(new Error("The server did not take the connection: is the API key right, or is it full?"));
    });
    Object.assign(this, { socket, model, key, items: [] });
    socket.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.type === "conversation.item.done") this.items.push(event.item.id);
      this.onEvent(event);
    };
    socket.onclose = () => {
      if (this.socket === socket) this.onEvent({ type: "closed" });
    };
  }

  send(type, fields = {}) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  configure(rate, { handsFree, partial }) {
    const input = {
      format: { type: "audio/pcm", rate },
      transcription: partial ? {} : null,
      turn_detection: handsFree ? { type: "server_vad" } : null,
    };
    this.send("session.update", { session: { type: "realtime", audio: { input } } });
  }

  say(text) {
    const content = [{ type: "input_text", text }];
    this.send("conversation.item.create", { item: { type: "message", role: "user", content } });
  }

  forget() {
    for (const item_id of this.items) this.send("conversation.item.delete", { item_id });
    this.items = [];
  }

  close() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }
}
