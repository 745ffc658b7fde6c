// Draws a song's notes and mel, and plays its audio while it is being rendered.
// Gradio calls this with `element`, `props` (song: the notes; value: the progress of the rendering) and `watch`.
const RATE = 16000; // samples a second
const FRAMES = 50; // of the mel, a second
const DELAY = 0.06; // seconds from scheduling audio to hearing it

const find = (selector) => element.querySelector(selector);
const [plot, roll, mel, playhead] = [".plot", ".roll", ".mel", ".playhead"].map(find);
const [title, status, remarks, play, icon, time] = [".title strong", ".status", ".remarks", ".play", ".play path", ".time"].map(find);

let voices = new Map(); // rows of the table of instruments, by program
let folder = null; // of the song being rendered, on the server; each rendering has another
let cancelled = null; // the folder of a rendering of which no more is wanted
let running = false;
let chunks = []; // promises of Float32Array, in order
let audio = []; // {start, samples}: the chunks that have arrived
let pictures = []; // promises of images
let drawn = []; // images
let context = null; // made at the first click
let sources = []; // audio nodes that play or are scheduled
let origin = 0; // the context's time at which the song's time 0 is, or would have been
let position = 0; // seconds, where playing is paused
let playing = false;
let wanted = false; // the next audio that arrives is to be played

const total = () => props.song?.seconds ?? 0;
const rendered = () => (audio.length ? audio.at(-1).start + audio.at(-1).samples.length / RATE : 0);
const now = () => (playing ? Math.max(0, Math.min(context.currentTime - origin, rendered())) : position);
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function sized(canvas) {
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  return [canvas.getContext("2d"), canvas.width, canvas.height];
}

function drawRoll() {
  const [pen, width, height] = sized(roll);
  const song = props.song;
  if (!song) return;
  const low = song.pitch.reduce((a, b) => Math.min(a, b), 127) - 2;
  const high = song.pitch.reduce((a, b) => Math.max(a, b), 0) + 3;
  const line = height / (high - low);
  song.pitch.forEach((pitch, i) => {
    const voice = voices.get(song.program[i]);
    const x = (song.start[i] / song.seconds) * width;
    const wide = ((song.end[i] - song.start[i]) / song.seconds) * width;
    pen.globalAlpha = voice?.muted ? 0.12 : 0.9;
    pen.fillStyle = voice?.colour ?? "#888";
    pen.fillRect(x, height - (pitch - low + 1) * line, Math.max(wide - 0.5, 1.5), Math.max(line * 0.85, 1.5));
  });
}

function drawMel() {
  const [pen, width, height] = sized(mel);
  let x = 0;
  for (const picture of drawn) {
    const wide = (picture.naturalWidth / FRAMES / total()) * width;
    pen.drawImage(picture, x, 0, wide + 0.5, height);
    x += wide;
  }
}

function show() {
  const at = now();
  playhead.style.left = `${total() ? (100 * at) / total() : 0}%`;
  time.textContent = `${clock(at)} / ${clock(total())}`;
  icon.setAttribute("d", playing ? "M7 5h3v14h-3zM14 5h3v14h-3z" : "M8 5v14l11-7z");
  play.setAttribute("aria-label", playing ? "Pause" : "Play");
  play.disabled = !audio.length;
  plot.classList.toggle("empty", !props.song);
}

function tick() {
  if (!playing) return;
  if (!running && audio.length === chunks.length && now() >= rendered()) pause(0);
  show();
  requestAnimationFrame(tick);
}

function schedule(chunk) {
  const skipped = Math.max(0, context.currentTime - origin - chunk.start);
  if (skipped * RATE >= chunk.samples.length) return; // it is over, or empty
  const buffer = context.createBuffer(1, chunk.samples.length, RATE);
  buffer.copyToChannel(chunk.samples, 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.start(Math.max(origin + chunk.start, 0), skipped);
  sources.push(source);
}

function silence() {
  for (const source of sources) source.stop();
  sources = [];
}

function from(seconds) {
  silence();
  // A whole number of samples, so that chunks follow one another without a gap.
  origin = Math.round((context.currentTime + DELAY - seconds) * RATE) / RATE;
  for (const chunk of audio) if (chunk.start + chunk.samples.length / RATE > seconds) schedule(chunk);
}

function start() {
  playing = true;
  from(position >= rendered() ? 0 : position);
  requestAnimationFrame(tick);
  show();
}

function pause(at = now()) {
  position = at;
  playing = wanted = false;
  silence();
  show();
}

function arrived(samples) {
  const chunk = { start: rendered(), samples };
  const late = playing && context.currentTime - origin > chunk.start; // playing has had to wait for it
  audio.push(chunk);
  if (late) from(chunk.start);
  else if (playing) schedule(chunk);
  else if (wanted) start();
  wanted = false;
  show();
}

const address = (name) => `${window.gradio_config?.root ?? ""}/gradio_api/file=${folder}/${name}`;

// What is fetched may be gone when the rendering has been cancelled; then it is left out.
async function fetchChunk(name, before) {
  const mine = folder;
  const reply = await fetch(address(name)).catch(() => null);
  const bytes = reply?.ok ? await reply.arrayBuffer() : new ArrayBuffer(0);
  await before;
  if (mine === folder) arrived(Float32Array.from(new Int16Array(bytes), (sample) => sample / 32768));
}

async function fetchPicture(name, before) {
  const mine = folder;
  const picture = new Image();
  picture.src = address(name);
  await picture.decode().catch(() => null);
  await before;
  if (mine !== folder || !picture.naturalWidth) return;
  drawn.push(picture);
  drawMel();
}

function clear(next) {
  if (context) pause(0);
  position = 0;
  [folder, chunks, audio, pictures, drawn] = [next, [], [], [], []];
  wanted = Boolean(next);
  drawMel();
}

watch("value", () => {
  const run = props.value ?? {};
  if (run.folder && run.folder === cancelled) return; // said before the server knew
  status.textContent = run.message ?? "";
  status.classList.toggle("failed", Boolean(run.failed));
  remarks.textContent = run.remarks ?? remarks.textContent;
  running = Boolean(run.running);
  if (run.folder && run.folder !== folder) clear(run.folder);
  while (chunks.length < (run.chunks ?? 0)) chunks.push(fetchChunk(`${chunks.length}.pcm`, chunks.at(-1)));
  while (pictures.length < (run.mels ?? 0)) pictures.push(fetchPicture(`${pictures.length}.png`, pictures.at(-1)));
  show();
});

watch("song", () => {
  cancelled = folder ?? cancelled;
  clear(null);
  title.textContent = props.song?.title ?? "";
  show();
  drawRoll();
});

document.addEventListener("instruments", (event) => {
  voices = new Map(event.detail.map((row) => [row.program, row]));
  drawRoll();
});
document.addEventListener(
  "click",
  (event) => {
    context ??= new AudioContext({ sampleRate: RATE }); // browsers permit sound from a click on
    context.resume();
    if (!event.target.closest("#cancel")) return;
    cancelled = folder;
    running = false;
    status.textContent = "Cancelled";
  },
  true,
);
play.addEventListener("click", () => (playing ? pause() : start()));
plot.addEventListener("click", (event) => {
  if (!audio.length) return;
  const box = plot.getBoundingClientRect();
  position = Math.min(((event.clientX - box.left) / box.width) * total(), rendered() - 0.01);
  if (playing) from(position);
  show();
});
plot.addEventListener("dragover", (event) => event.preventDefault());
plot.addEventListener("drop", (event) => {
  event.preventDefault();
  const input = document.querySelector("#file input[type=file]");
  if (!input || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change"));
});
new ResizeObserver(() => {
  drawRoll();
  drawMel();
}).observe(plot);
show();
