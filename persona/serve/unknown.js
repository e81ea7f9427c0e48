"use strict";
// Unknown people who came back: enrolled under a name, or deleted. It uses the functions of page.js and people.js.
async function showUnknown() {
  const { hours, total, people } = await call("unknown");
  $("unknown").hidden = false;
  const kept = `Unknown faces are kept for ${hours} hours, then they are deleted.`;
  $("unknown-count").textContent = total ? `${plural(total, "person", "people")} came more than once. ${kept}` : `Nobody came more than once. ${kept}`;
  $("unknown-list").replaceChildren(...people.map(unknownCard));
}

function unknownCard({ person, faces, visits, first, last, nearest, score, picture }) {
  const label = `Unknown person ${person}`;
  const image = picture ? pictureOf(picture, label) : make("span", { className: "face-of" }, label);
  const near = nearest === null ? "" : ` Nearest: ${shown(nearest)}, similarity ${score.toFixed(3)}.`;
  const when = `${plural(visits, "visit", "visits")}, ${plural(faces, "face", "faces")}, from ${timeOf(first)} to ${timeOf(last)}.${near}`;
  const name = make("input", { type: "text", autocomplete: "off" });
  const naming = make("form", { className: "tools" }, make("label", {}, "Name ", name), make("button", {}, "Enrol"));
  const remove = make("button", { type: "button" }, "Delete these faces");
  naming.addEventListener("submit", (event) => event.preventDefault());
  naming.addEventListener("submit", once(() => attempt(() => enrolUnknown(person, name.value, false))));
  remove.addEventListener("click", once(() => attempt(async () => {
    if (!await ask(`Delete the kept faces of unknown person ${person}?`, "Delete")) return;
    const { faces: count } = await call("unknown/forget", [["person", person]]);
    await showUnknown();
    tell({ good: [`${plural(count, "face is", "faces are")} deleted.`] });
  })));
  return make("article", { id: `unknown-${person}`, tabIndex: -1 },
    make("h3", {}, label),
    make("ul", { className: "faces" }, make("li", {}, image)), make("p", { dir: "auto" }, when), naming, remove);
}

function timeOf(text) {
  return new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

async function enrolUnknown(person, name, force) {
  try {
    const { added, name: stored } = await call("unknown/enroll", [["person", person], ["name", name], ...(force ? [["force", "1"]] : [])]);
    await refresh();
    tell({ good: [`${shown(stored)}: ${plural(added, "face", "faces")} enrolled.`] });
  } catch (error) {
    if (!error.doubt || force) throw error;
    if (await ask(doubtOf(error), "Enrol all the same")) await enrolUnknown(person, name, true);
  }
}
