"""What the page of scripts/app.py does in the browser: `element` is where its HTML stands, `server` calls Python."""

# A click on a word plays the audio from its beginning to its end.
PLAY_ON_CLICK = """
element.addEventListener("click", (event) => {
  const word = event.target.closest("[data-start]");
  const audio = element.querySelector("audio");
  if (!word || !audio) return;
  const end = Number(word.dataset.end);
  audio.currentTime = Number(word.dataset.start);
  audio.dataset.playing = word.textContent;
  audio.ontimeupdate = () => {
    if (audio.currentTime >= end) { audio.pause(); audio.ontimeupdate = null; }
  };
  audio.play();
});
"""

MICROPHONE = """
<button class="record" style="border:1px solid #888;border-radius:6px;padding:6px 16px">Record</button>
<p class="said" style="font-size:1.3em;min-height:2em"></p>
<div class="shown"></div>
"""

# Samples wait here until the server has taken those before them: however slow it is, none is lost.
LISTEN = """
const button = element.querySelector(".record");
const said = element.querySelector(".said");
const shown = element.querySelector(".shown");
const worklet = `registerProcessor("tap", class extends AudioWorkletProcessor {
  process(inputs) { if (inputs[0].length) this.port.postMessage(inputs[0][0].slice()); return true; }
});`;
let recording = null;

const encoded = (pieces) => {
  const samples = new Int16Array(pieces.reduce((count, piece) => count + piece.length, 0));
  let place = 0;
  for (const piece of pieces)
    for (const value of piece) samples[place++] = Math.max(-1, Math.min(1, value)) * 32767;
  const bytes = new Uint8Array(samples.buffer);
  let text = "";
  for (let first = 0; first < bytes.length; first += 8192)
    text += String.fromCharCode(...bytes.subarray(first, first + 8192));
  return btoa(text);
};

const send = async (of) => {
  if (!of.waiting.length) return;
  const pieces = of.waiting;
  of.waiting = [];
  said.textContent = await server.hear({key: of.key, rate: of.context.sampleRate, samples: encoded(pieces)});
};

const begin = async () => {
  const stream = await navigator.mediaDevices.getUserMedia({audio: true});
  const context = new AudioContext();
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([worklet], {type: "text/javascript"})));
  const of = {key: crypto.randomUUID(), stream, context, waiting: [], sent: Promise.resolve()};
  const tap = new AudioWorkletNode(context, "tap");
  tap.port.onmessage = (message) => of.waiting.push(message.data);
  context.createMediaStreamSource(stream).connect(tap);
  of.timer = setInterval(() => { of.sent = of.sent.then(() => send(of)); }, 300);
  return of;
};

const end = async (of) => {
  clearInterval(of.timer);
  of.stream.getTracks().forEach((track) => track.stop());
  await of.context.close(); // no samples come from here on
  await of.sent;
  await send(of);
  const result = await server.finish({key: of.key});
  said.textContent = result.text;
  shown.innerHTML = result.html;
};

button.addEventListener("click", async () => {
  button.disabled = true;
  try {
    if (recording) {
      const ended = recording;
      recording = null;
      button.textContent = "Record";
      await end(ended);
    } else {
      said.textContent = "";
      shown.innerHTML = "";
      recording = await begin();
      button.textContent = "Stop";
    }
  } catch (error) {
    said.textContent = `${error.message || error}`;
  }
  button.disabled = false;
});
"""
