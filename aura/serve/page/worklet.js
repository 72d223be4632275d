// Microphone samples -> chunks of about 40 ms for the page. A file of its own: the page allows no inline code.
class Taker extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.factor = options.processorOptions.factor; // samples averaged into one, for rates the server does not take
    this.chunk = new Float32Array(options.processorOptions.frames);
    this.filled = 0;
    this.sum = 0;
    this.count = 0;
  }

  process(inputs) {
    const samples = inputs[0][0];
    if (!samples) return true;
    for (const sample of samples) {
      this.sum += sample;
      if (++this.count < this.factor) continue;
      this.chunk[this.filled++] = this.sum / this.factor;
      this.sum = this.count = 0;
      if (this.filled === this.chunk.length) {
        this.port.postMessage(this.chunk.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}
registerProcessor("taker", Taker);
