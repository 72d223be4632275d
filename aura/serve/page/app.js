// The page: press, speak, read. Voice goes over the realtime socket, files over /v1/chat/completions.

import { base64, decodeFile, drawSpectrogram, joined, loudness, Microphone, pcm16, wavFile } from "./sound.js";
import { Live } from "./live.js";

const by = (id) => document.getElementById(id);
const HOLD = 350; // ms: a shorter press starts, the next one sends
const AHEAD = 60000; // ms without an answer until we say that something is wrong

const state = { listening: false, pressedAt: 0, microphone: null, chunks: [], rate: 16000, turn: null, abort: null };
const live = new Live(onEvent);

// --- what is shown -----------------------------------------------------------------------------------------

function say(text, bad = false) {
  by("status").textContent = text;
  by("status").classList.toggle("bad", bad);
}

function show(samples, rate) {
  drawSpectrogram(by("spectrogram"), samples, rate);
  const seconds = (samples.length / rate).toFixed(1);
  by("spectrogram").setAttribute("aria-label", `Spectrogram of the last recording, ${seconds} seconds, up to 8 kilohertz`);
  by("scale").textContent = `${seconds} s, 0 to 8 kHz`;
}

function begin(samples, rate, name) {
  state.turn = { samples, rate, name, question: by("question").value.trim(), text: "", heard: by("heard").textContent, sent: performance.now(), first: null };
  show(samples, rate);
  by("answer").textContent = "";
  by("answer").setAttribute("aria-busy", "true");
  by("timing").textContent = "";
  by("stop").hidden = false;
  say("Thinking …");
  by("answer-title").scrollIntoView({ block: matchMedia("(min-width: 52rem)").matches ? "nearest" : "start" });
  clearTimeout(state.alarm);
  state.alarm = setTimeout(() => state.turn && say("The server takes long. It may be busy; you can wait or stop the answer."), AHEAD);
}

function piece(text) {
  const turn = state.turn;
  if (!turn) return;
  turn.first ??= performance.now() - turn.sent;
  turn.text += text;
  by("answer").textContent = turn.text;
  by("timing").textContent = `First words after ${(turn.first / 1000).toFixed(2)} s.`;
  say("Answering …");
}

function end(note = "") {
  const turn = state.turn;
  if (!turn) return;
  state.turn = null;
  clearTimeout(state.alarm);
  by("answer").setAttribute("aria-busy", "false");
  by("stop").hidden = true;
  if (turn.first !== null) {
    const whole = ((performance.now() - turn.sent) / 1000).toFixed(2);
    by("timing").textContent = `First words after ${(turn.first / 1000).toFixed(2)} s, all of it after ${whole} s.${note}`;
    keep(turn);
  } else if (!by("status").classList.contains("bad")) {
    by("timing").textContent = "The answer is empty.";
    keep(turn);
  }
  if (!by("status").classList.contains("bad")) say("Ready.");
}

function fail(message) {
  say(message, true);
  end();
}

function keep(turn) {
  const item = document.createElement("li");
  const line = (label, text) => {
    const p = document.createElement("p");
    const small = document.createElement("span");
    small.className = "hint";
    small.textContent = `${label} `;
    p.append(small, text);
    return p;
  };
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Spectrogram, ${(turn.samples.length / turn.rate).toFixed(1)} seconds`);
  drawSpectrogram(canvas, turn.samples, turn.rate);
  item.append(canvas);
  if (turn.name) item.append(line("File:", turn.name));
  if (turn.question) item.append(line("Asked:", turn.question));
  turn.heardLine = line("Heard:", turn.heard || "–");
  item.append(turn.heardLine, line("Answer:", turn.text || "(nothing)"));
  const audio = document.createElement("audio");
  audio.controls = true;
  audio.preload = "metadata";
  audio.src = URL.createObjectURL(wavFile(turn.samples, turn.rate));
  audio.setAttribute("aria-label", "The recording");
  item.append(audio);
  by("history").prepend(item);
  by("no-history").hidden = true;
  by("forget").hidden = false;
  state.last = turn;
}

function heard(text, whole) {
  by("heard").textContent = text;
  if (state.turn) state.turn.heard = text;
  else if (whole && state.last) state.last.heardLine.lastChild.textContent = text;
}

// --- voice ---------------------------------------------------------------------------------------------------

async function start() {
  if (state.listening) return;
  if (state.turn) stopAnswer();
  if (!navigator.mediaDevices?.getUserMedia) {
    return say("The browser gives no microphone to this page: open it as localhost, or through https.", true);
  }
  state.listening = true;
  state.wanted = true;
  state.ready = false;
  state.chunks = [];
  by("talk").setAttribute("aria-pressed", "true");
  by("talk-label").textContent = "Listening …";
  by("heard").textContent = "";
  say("Opening the microphone …");
  try {
    state.microphone = new Microphone(take);
    const [rate] = await Promise.all([state.microphone.open(), live.connect(by("model").value, by("key").value)]);
    state.rate = rate;
    if (!by("remember").checked) live.forget();
    live.send("input_audio_buffer.clear");
    live.configure(rate, { handsFree: by("hands-free").checked, partial: by("partial").checked });
    const question = by("question").value.trim();
    if (question) live.say(question);
    // What was said while the socket opened.
    state.ready = true;
    for (const samples of state.chunks) send(samples);
    say("Speak now.");
    by("talk-label").textContent = by("hands-free").checked ? "Listening: press to end" : "Release or press to send";
    if (!state.wanted) stop();
  } catch (error) {
    await release();
    say(error.name === "NotAllowedError" ? "The microphone was not allowed. Allow it in the browser's address bar." : error.message, true);
  }
}

function take(samples) {
  if (!state.listening) return;
  state.chunks.push(samples);
  by("level").style.transform = `scaleX(${loudness(samples)})`;
  if (state.ready) send(samples);
}

function send(samples) {
  live.send("input_audio_buffer.append", { audio: base64(pcm16(samples)) });
}

async function release() {
  state.listening = false;
  by("level").style.transform = "scaleX(0)";
  by("talk").setAttribute("aria-pressed", "false");
  by("talk-label").textContent = "Hold to talk";
  await state.microphone?.close();
}

async function stop() {
  if (!state.listening) return;
  const samples = joined(state.chunks), rate = state.rate;
  const handsFree = by("hands-free").checked;
  state.listening = false;
  if (handsFree) {
    live.send("input_audio_buffer.clear");
    say("Ready.");
  } else if (samples.length < 0.1 * rate) {
    live.send("input_audio_buffer.clear");
    say("That was too short to hold a word. Hold the button while you speak.", true);
  } else {
    live.send("input_audio_buffer.commit");
    live.send("response.create");
    begin(samples, rate);
  }
  await release();
}

function onEvent(event) {
  switch (event.type) {
    case "conversation.item.input_audio_transcription.partial":
      return heard(event.transcript, false);
    case "conversation.item.input_audio_transcription.completed":
      return heard(event.transcript, true);
    case "input_audio_buffer.speech_started":
      if (state.turn) end(" Interrupted.");
      state.from = Math.max(0, event.audio_start_ms);
      return say("I hear you.");
    case "input_audio_buffer.speech_stopped": {
      const all = joined(state.chunks), ms = state.rate / 1000;
      return begin(all.slice(state.from * ms, event.audio_end_ms * ms), state.rate);
    }
    case "response.output_text.delta":
      return piece(event.delta);
    case "response.done":
      if (event.response.status === "failed") return;
      return end(event.response.status === "incomplete" ? " Cut off at its longest length." : "");
    case "error":
      if (event.error.code === "response_cancel_not_active" || event.error.code === "item_not_found") return;
      return fail(event.error.message);
    case "closed":
      if (state.listening) release();
      return state.turn ? fail("The connection to the server broke off. Try again in a moment.") : undefined;
  }
}

function stopAnswer() {
  state.abort?.abort();
  live.send("response.cancel");
  end(" Stopped.");
}

// --- files ---------------------------------------------------------------------------------------------------

async function askFile(file) {
  if (!file) return;
  if (state.turn) stopAnswer();
  by("heard").textContent = "";
  try {
    let sound;
    try {
      sound = await decodeFile(file);
    } catch {
      return say(`${file.name} is no audio that this browser can read.`, true);
    }
    begin(sound.samples, sound.rate, file.name);
    const content = [{ type: "input_audio", input_audio: { data: base64(new Uint8Array(await file.arrayBuffer())), format: "wav" } }];
    const question = by("question").value.trim();
    if (question) content.push({ type: "text", text: question });
    state.abort = new AbortController();
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization() },
      body: JSON.stringify({ model: by("model").value, stream: true, messages: [{ role: "user", content }] }),
      signal: state.abort.signal,
    });
    if (!response.ok) return fail((await response.json()).error.message);
    await readStream(response.body);
    end();
  } catch (error) {
    if (error.name !== "AbortError") fail(`The server did not answer: ${error.message}`);
  }
}

async function readStream(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (waiting + value).split("\n\n");
    waiting = lines.pop();
    for (const line of lines) {
      const text = line.replace(/^data: /, "");
      if (text === "[DONE]") return;
      const chunk = JSON.parse(text);
      if (chunk.error) return fail(chunk.error.message);
      const delta = chunk.choices[0]?.delta.content;
      if (delta) piece(delta);
    }
  }
}

function authorization() {
  const key = by("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// --- controls ------------------------------------------------------------------------------------------------

function press() {
  if (state.listening) {
    state.wanted = false;
    return state.ready ? stop() : undefined;
  }
  state.pressedAt = performance.now();
  start();
}

function lift() {
  const held = state.pressedAt && performance.now() - state.pressedAt > HOLD;
  state.pressedAt = 0;
  if (!held || by("hands-free").checked) return;
  state.wanted = false;
  if (state.listening && state.ready) stop(); // else `start` does, when it is ready
}

by("talk").addEventListener("pointerdown", (event) => {
  if (event.button) return;
  by("talk").setPointerCapture(event.pointerId);
  press();
});
by("talk").addEventListener("pointerup", lift);
by("talk").addEventListener("pointercancel", lift);
by("talk").addEventListener("contextmenu", (event) => event.preventDefault());
// A click without a pointer comes from assistive technology.
by("talk").addEventListener("click", (event) => event.detail === 0 && !state.byKey && press());

const writes = (target) => target.closest?.("input, select, summary, a, audio, button:not(#talk)");
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.turn) return stopAnswer();
  const onButton = event.target === by("talk") && event.key === "Enter";
  if ((event.key !== " " && !onButton) || event.repeat || writes(event.target)) {
    if (event.key === " " && !writes(event.target)) event.preventDefault();
    return;
  }
  event.preventDefault();
  state.byKey = true;
  press();
});
document.addEventListener("keyup", (event) => {
  if (!state.byKey || (event.key !== " " && event.key !== "Enter")) return;
  event.preventDefault();
  state.byKey = false;
  lift();
});
by("stop").addEventListener("click", stopAnswer);
by("file").addEventListener("change", () => {
  askFile(by("file").files[0]);
  by("file").value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") askFile(event.dataTransfer.files[0]);
  });
}
by("forget").addEventListener("click", () => {
  by("history").querySelectorAll("audio").forEach((audio) => URL.revokeObjectURL(audio.src));
  by("history").replaceChildren();
  by("no-history").hidden = false;
  by("forget").hidden = true;
  live.forget();
  by("talk").focus();
});
by("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
by("key").addEventListener("change", () => {
  sessionStorage.setItem("key", by("key").value);
  models();
});

async function models() {
  try {
    const response = await fetch("v1/models", { headers: authorization() });
    const body = await response.json();
    if (!response.ok) {
      document.querySelector("details").open = true;
      return say(body.error.message, true);
    }
    by("model").replaceChildren(...body.data.map((model) => new Option(model.id)));
    say("Ready.");
  } catch {
    say("The server cannot be reached.", true);
  }
}

if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
by("key").value = sessionStorage.getItem("key") ?? "";
models();
