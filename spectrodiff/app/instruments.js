// The table of a song's instruments, in which each can be given another program or be muted.
// Gradio calls this with `element`, `props` (value: the rows; families: the names of General MIDI) and `watch`.
const DRUMS = -1;
const table = element.querySelector("table");
const made = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const programs = props.families.flatMap(([, names]) => names);

function choose(index, choice) {
  props.value = props.value.map((row, i) => (i === index ? { ...row, ...choice } : row));
  tell();
}

function tell() {
  table.querySelectorAll("tr").forEach((line, i) => {
    const muted = props.value[i].muted;
    line.classList.toggle("muted", muted);
    line.querySelector("button").setAttribute("aria-pressed", muted);
  });
  document.dispatchEvent(new CustomEvent("instruments", { detail: props.value }));
}

function programList(row, index) {
  if (row.program === DRUMS) return "";
  let program = 0;
  const groups = props.families.map(([label, names]) =>
    made("optgroup", { label }, ...names.map((name) => made("option", { value: program++ }, name))),
  );
  const list = made("select", { ariaLabel: `Program for ${programs[row.program]}` }, ...groups);
  list.value = row.target;
  list.onchange = () => choose(index, { target: Number(list.value) });
  return list;
}

function build() {
  table.replaceChildren(
    ...(props.value ?? []).map((row, index) => {
      const dot = made("i");
      dot.style.background = row.colour;
      const mute = made("button", { type: "button", onclick: () => choose(index, { muted: !props.value[index].muted }) }, "Mute");
      const name = row.program === DRUMS ? "Drums" : programs[row.program];
      const cells = [[dot, name], [`${row.notes} notes`], [programList(row, index)], [mute]];
      return made("tr", {}, ...cells.map((cell) => made("td", {}, ...cell)));
    }),
  );
  tell();
}

watch("value", build);
