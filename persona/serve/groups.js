"use strict";
// The groups of `persona group`: named, merged, split, and then enrolled. It uses the functions of page.js.
const STEP = 20; // groups that are shown at first, and that each click adds
let shownGroups = STEP;

async function showGroups() {
  const groups = [];
  let total = shownGroups;
  while (groups.length < Math.min(shownGroups, total)) {
    const part = await call(`groups?first=${groups.length}&count=${shownGroups - groups.length}`);
    total = part.total;
    if (!part.groups.length) break;
    groups.push(...part.groups);
  }
  $("groups").hidden = false;
  $("groups-count").textContent = `${plural(total, "group", "groups")}. A name that two groups have makes them one.`;
  $("groups-more").hidden = groups.length >= total;
  $("groups-list").replaceChildren(...groups.map(groupCard));
}

function groupCard(group) {
  const { group: number, size, faces } = group;
  const chosen = new Set();
  const title = `${group.name === null ? `Group ${number}` : shown(group.name)}, ${plural(size, "face", "faces")}`;
  const split = make("button", { type: "button", ariaDisabled: "true" }, "Split off the chosen faces");
  const choose = (button, face) => {
    if (chosen.delete(face)) button.ariaPressed = "false";
    else {
      chosen.add(face);
      button.ariaPressed = "true";
    }
    split.ariaDisabled = String(!chosen.size || chosen.size === size);
  };
  const pictures = faces.map(({ face, photo, flaw, copy_of, picture }) => {
    const notes = [shown(photo), ...(flaw ? [flaw] : []), ...(copy_of ? [`nearly a copy of ${shown(copy_of)}`] : [])].join(", ");
    const image = make("img", { src: `data:image/jpeg;base64,${picture}`, alt: notes, title: notes });
    const button = make("button", { type: "button", ariaPressed: "false", className: copy_of ? "copy" : "" }, image);
    button.addEventListener("click", () => choose(button, face));
    return make("li", {}, button);
  });
  const name = make("input", { type: "text", value: group.name ?? "", autocomplete: "off" });
  const into = make("input", { type: "text", inputMode: "numeric", className: "number", autocomplete: "off" });
  const naming = make("form", { className: "tools" }, make("label", {}, "Name ", name), make("button", {}, "Save"));
  const merging = make("form", { className: "tools" }, make("label", {}, "Merge into group ", into), make("button", {}, "Merge"));
  const act = (element, kind, path, fields, done) => {
    element.addEventListener(kind, (event) => event.preventDefault());
    element.addEventListener(kind, once(() => attempt(async () => {
      const answer = await call(`groups/${path}`, [["group", number], ...fields()]);
      await showGroups();
      tell({ good: [done(answer.group)] });
      (document.getElementById(`group-${answer.group}`) ?? $("groups-list")).focus();
    })));
  };
  act(naming, "submit", "name", () => [["name", name.value]], (now) => (now === number
    ? `Group ${number} is ${name.value.trim() || "without a name"}.` : `Group ${number} is merged into group ${now}, ${name.value.trim()}.`));
  act(merging, "submit", "merge", () => [["into", into.value.trim()]], (now) => `Group ${number} is merged into group ${now}.`);
  act(split, "click", "split", () => [["faces", [...chosen].join(",")]], (now) => `The chosen faces are group ${now} now.`);
  const more = size > faces.length ? [make("p", { className: "why" }, `and ${size - faces.length} more`)] : [];
  return make("article", { id: `group-${number}`, tabIndex: -1 },
    make("h3", { dir: "auto" }, title, ...(group.name === null ? [] : [make("span", { className: "why" }, ` group ${number}`)])),
    make("ul", { className: "faces" }, ...pictures), ...more, naming, merging, ...(size > 1 ? [split] : []));
}

// The groups are enrolled one by one, so that a request is short. Doubts are asked about.
async function enrolGroups() {
  const named = [];
  for (let first = 0, total = 1; first < total;) {
    const part = await call(`groups?first=${first}&count=50&named=true`);
    named.push(...part.groups);
    total = part.total;
    first += part.groups.length || total;
  }
  if (!named.length) throw new Refused("Name a group first.");
  const told = { good: [], notes: [], bad: [] };
  for (const { group, name } of named) await enrolGroup(group, name, false, told);
  await refresh();
  tell(told);
}

async function enrolGroup(group, name, force, told) {
  try {
    const { added, already, refused } = await call("groups/enroll", [["group", group], ...(force ? [["force", "1"]] : [])]);
    const notes = [...(already ? [`${already} enrolled already`] : []), ...(refused.length ? [`${refused.length} too poor`] : [])];
    const line = `${shown(name)}: ${plural(added, "face", "faces")} enrolled${notes.map((note) => `, ${note}`).join("")}.`;
    (added ? told.good : told.notes).push(line);
  } catch (error) {
    if (error.doubt && !force) {
      if (await ask(`${shown(name)}: ${doubtOf(error)}`, "Enrol all the same")) {
        await enrolGroup(group, name, true, told);
        return;
      }
    } else if (!(error instanceof Refused) || error.status !== 422) throw error;
    told.bad.push(`${shown(name)} is not enrolled: ${error.message}`);
  }
}

$("groups-enrol").addEventListener("click", once(() => attempt(enrolGroups)));
$("groups-more").addEventListener("click", once(() => attempt(async () => {
  shownGroups += STEP;
  await showGroups();
})));
