// Microphone, spectrogram, wav and base64: everything that touches samples.

const HIGHEST_RATE = 48000; // Hz, what the server takes

export class Microphone {
  constructor(onSamples) {
    this.onSamples = onSamples;
  }

  async open() {
    // As it is: the model was trained on plain recordings, not on a telephone's clean-up.
    const raw = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("page/worklet.js");
    const factor = Math.ceil(this.context.sampleRate / HIGHEST_RATE);
    this.rate = Math.round(this.context.sampleRate / factor);
    this.node = new AudioWorkletNode(this.context, "taker", {
      numberOfOutputs: 0,
      processorOptions: { factor, frames: Math.round(this.rate / 25) },
    });
    this.node.port.onmessage = (event) => this.onSamples(event.data);
    this.context.createMediaStreamSource(this.stream).connect(this.node);
    return this.rate;
  }

  async close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") await this.context.close();
  }
}

export function joined(chunks) {
  const whole = new Float32Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let place = 0;
  for (const chunk of chunks) {
    whole.set(chunk, place);
    place += chunk.length;
  }
  return whole;
}

export function pcm16(samples) {
  const found = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) found[i] = Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32768)));
  return new Uint8Array(found.buffer);
}

export function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export function wavFile(samples, rate) {
  const data = pcm16(samples);
  const head = new DataView(new ArrayBuffer(44));
  const word = (place, text) => [...text].forEach((c, i) => head.setUint8(place + i, c.charCodeAt(0)));
  word(0, "RIFF"); head.setUint32(4, 36 + data.length, true); word(8, "WAVEfmt ");
  head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
  head.setUint32(24, rate, true); head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  word(36, "data"); head.setUint32(40, data.length, true);
  return new Blob([head, data], { type: "audio/wav" });
}

export async function decodeFile(file) {
  const context = new OfflineAudioContext(1, 1, 16000); // resamples to the rate that the model hears
  const buffer = await context.decodeAudioData(await file.arrayBuffer());
  const mono = new Float32Array(buffer.length);
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    buffer.getChannelData(c).forEach((sample, i) => (mono[i] += sample / buffer.numberOfChannels));
  }
  return { samples: mono, rate: buffer.sampleRate };
}

export function loudness(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  const db = 10 * Math.log10(sum / samples.length + 1e-9);
  return Math.max(0, Math.min(1, (db + 60) / 55)); // -60 dB: nothing, -5 dB: full
}

// Log magnitudes up to 8 kHz, which is all that the model hears; 25 ms windows.
export function drawSpectrogram(canvas, samples, rate) {
  const size = 1 << Math.round(Math.log2(rate * 0.032));
  const length = Math.min(size, Math.round(rate * 0.025));
  const width = (canvas.width = Math.max(1, Math.min(900, Math.floor(samples.length / (rate * 0.01)))));
  const height = (canvas.height = 96);
  const top = Math.min(size / 2, Math.round((8000 / rate) * size));
  const picture = canvas.getContext("2d").createImageData(width, height);
  const levels = new Float32Array(width * height);
  let loudest = -200;
  for (let x = 0; x < width; x++) {
    const start = Math.floor((x / width) * Math.max(0, samples.length - length));
    const re = new Float32Array(size), im = new Float32Array(size);
    for (let i = 0; i < length && start + i < samples.length; i++) {
      re[i] = samples[start + i] * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / length));
    }
    fft(re, im);
    for (let y = 0; y < height; y++) {
      const first = Math.floor((y / height) * top), last = Math.max(first + 1, Math.floor(((y + 1) / height) * top));
      let power = 0;
      for (let k = first; k < last; k++) power += re[k] * re[k] + im[k] * im[k];
      const level = 10 * Math.log10(power / (last - first) + 1e-10);
      levels[(height - 1 - y) * width + x] = level;
      loudest = Math.max(loudest, level);
    }
  }
  levels.forEach((level, i) => {
    const [r, g, b] = colour(Math.max(0, Math.min(1, (level - loudest + 60) / 60)));
    picture.data.set([r, g, b, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function colour(value) {
  // Black, blue, violet, orange, pale yellow: brightness only grows, so it reads without colour as well.
  const stops = [[8, 10, 20], [40, 40, 120], [140, 45, 140], [240, 120, 70], [255, 245, 190]];
  const place = value * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
  return stops[low].map((from, i) => from + (stops[low + 1][i] - from) * (place - low));
}

function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let size = 2; size <= n; size <<= 1) {
    const angle = (-2 * Math.PI) / size;
    for (let start = 0; start < n; start += size) {
      for (let k = 0; k < size / 2; k++) {
        const c = Math.cos(angle * k), s = Math.sin(angle * k);
        const a = start + k, b = a + size / 2;
        const tr = re[b] * c - im[b] * s, ti = re[b] * s + im[b] * c;
        re[b] = re[a] - tr; im[b] = im[a] - ti;
        re[a] += tr; im[a] += ti;
      }
    }
  }
}
