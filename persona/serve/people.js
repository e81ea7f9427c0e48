"use strict";
// The people of the gallery as cards, and one person's photos: renamed, merged, split, forgotten. It uses the functions of page.js.
const CARDS = 60; // people that are shown at first, and that each click adds
const AT_ONCE = 24; // faces of a request
const PAGE_PHOTOS = 100; // photos of a request
let people = [];
let bar = 0; // the gallery's threshold
let shownPeople = CARDS;
const faceOf = new Map(); // pictures, by person as it was when asked for
let asking = 0; // counts what was drawn, so that a late answer fills no card that is gone
let opened = null; // the person whose photos are shown: {name, photos, chosen, total}

const keyOf = (person) => `${person.name}\n${person.photos}\n${person.created}`;
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const matching = () => people.filter((person) => plain(shown(person.name)).includes(plain($("search").value.trim())));

function showPeople(all, threshold, keepsFaces) {
  people = all.sort((one, other) => one.name.localeCompare(other.name));
  bar = threshold;
  $("find").hidden = !people.length;
  $("person-hint").textContent = keepsFaces ? "" : "New faces are not kept: with --keep-crops, persona serve shows them here.";
  drawPeople();
}

function drawPeople() {
  const found = matching();
  const cards = found.slice(0, shownPeople).map(personCard);
  const photos = people.reduce((sum, person) => sum + person.photos, 0);
  const all = `${plural(people.length, "person", "people")}, ${plural(photos, "photo", "photos")}`;
  $("count").textContent = !people.length ? "Nobody yet: enrol someone first."
    : found.length === people.length ? all : `${found.length} of ${all}`;
  $("people-more").hidden = cards.length >= found.length;
  $("people").replaceChildren(...cards.map((card) => card.element));
  fillFaces(cards);
}

// The faces of the cards, a few at a time. A card without one keeps its letter.
async function fillFaces(cards) {
  asking += 1;
  const mine = asking;
  const unseen = cards.filter((card) => !faceOf.has(keyOf(card.person)));
  try {
    for (let first = 0; first < unseen.length; first += AT_ONCE) {
      const part = unseen.slice(first, first + AT_ONCE);
      const { faces } = await call("faces", [["names", JSON.stringify(part.map((card) => card.person.name))]]);
      faces.forEach(({ picture }, place) => faceOf.set(keyOf(part[place].person), picture));
      if (mine !== asking) return;
      for (const card of part) card.fill();
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error; // cards do without faces
  }
}

const pictureOf = (data, alt) => make("img", { src: `data:image/jpeg;base64,${data}`, alt });

function personCard(person) {
  const name = shown(person.name);
  const face = make("span", { className: "face-of", ariaHidden: "true" });
  const fill = () => {
    const data = faceOf.get(keyOf(person));
    face.replaceChildren(data ? pictureOf(data, "") : ([...name][0] ?? "").toUpperCase());
  };
  fill();
  const open = make("button", { type: "button", className: "open" }, face,
    make("strong", { dir: "auto" }, name), make("span", { className: "why" }, plural(person.photos, "photo", "photos")));
  open.addEventListener("click", () => attempt(() => openPerson(person.name)));
  const menu = menuOf(`More about ${name}`, [
    ["Rename…", () => openPerson(person.name, "rename-to")],
    ["Merge…", () => openPerson(person.name, "merge-into")],
    ...(person.photos > 1 ? [["Split…", () => openPerson(person.name, "person-photos")]] : []),
    ["Forget…", () => forget(person), "grave"],
  ]);
  const element = make("li", { className: "person" }, open, menu);
  return { element, person, fill };
}

// A menu button: arrows move, Escape and a click elsewhere close it.
function menuOf(label, entries) {
  const button = make("button", { type: "button", className: "small dots", ariaLabel: label, ariaHasPopup: "menu", ariaExpanded: "false" }, "⋯");
  const items = entries.map(([text, work, kind]) => {
    const item = make("button", { type: "button", tabIndex: -1, className: kind ?? "" }, text);
    item.role = "menuitem";
    item.addEventListener("click", () => { open(false); button.focus(); attempt(work); });
    return item;
  });
  const list = make("div", { className: "items", hidden: true, ariaLabel: label }, ...items);
  list.role = "menu";
  const open = (isOpen) => {
    list.hidden = !isOpen;
    button.ariaExpanded = String(isOpen);
    if (isOpen) items[0].focus();
  };
  button.addEventListener("click", () => open(list.hidden));
  const box = make("div", { className: "menu" }, button, list);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (list.hidden) open(true);
      else items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
    } else if (event.key === "Escape" && !list.hidden) {
      open(false);
      button.focus();
    } else if (event.key === "Home" && !list.hidden) items[0].focus();
    else if (event.key === "End" && !list.hidden) items.at(-1).focus();
  });
  box.addEventListener("focusout", (event) => { if (!box.contains(event.relatedTarget)) open(false); });
  return box;
}

async function forget(person) {
  const question = `Forget ${shown(person.name)}? ${plural(person.photos, "photo", "photos")} will be gone for good.`;
  if (!await ask(question, "Forget")) return;
  await call("forget", [["name", person.name]]);
  await refresh();
  $("gallery-title").focus();
  tell({ good: [`${shown(person.name)} is forgotten.`] });
  await lookAgain();
}

// One person: their photos, and what can be done with them.

async function openPerson(name, focus = "person-name") {
  opened = { name, photos: [], chosen: new Set(), total: 0 };
  await morePhotos();
  $("rename-to").value = name;
  $("split-to").value = "";
  $("merge-into").replaceChildren(make("option", { value: "" }, "Choose…"),
    ...people.filter((other) => other.name !== name).map((other) => make("option", { value: other.name }, shown(other.name))));
  $("merge").hidden = people.length < 2;
  if (!$("person").open) {
    $("person").prepend($("told")); // what lies behind a dialog is not read
    $("person").showModal();
  }
  const wanted = $(focus);
  (wanted.matches("ul") ? wanted.querySelector("button") ?? $("person-name") : wanted).focus();
  if (wanted.matches("input")) wanted.select();
}

async function morePhotos() {
  const { name, photos } = opened;
  const answer = await call("photos", [["name", name], ["first", photos.length], ["count", PAGE_PHOTOS]]);
  opened.total = answer.total;
  photos.push(...answer.photos);
  const person = people.find((other) => other.name === name);
  $("person-name").textContent = shown(name);
  $("person-facts").textContent = `${plural(answer.total, "photo", "photos")}${person ? `, enrolled ${person.created.slice(0, 10)}` : ""}`;
  $("person-photos").replaceChildren(...photos.map(photoTile));
  $("photos-more").hidden = photos.length >= answer.total;
  $("split").hidden = answer.total < 2;
  chose();
}

function photoTile({ photo: number, picture, similarity }, place) {
  const label = `Photo ${place + 1}`;
  const unlike = similarity < bar;
  const button = make("button", { type: "button", ariaPressed: String(opened.chosen.has(number)), className: unlike ? "unlike" : "" },
    picture ? pictureOf(picture, label) : make("span", { className: "face-of" }, label),
    make("span", { className: "score" }, similarity.toFixed(2), ...(unlike ? [make("span", {}, " unlike")] : [])));
  button.title = `${label}: similarity ${similarity.toFixed(3)} to all photos of ${shown(opened.name)}`;
  button.addEventListener("click", () => {
    if (!opened.chosen.delete(number)) opened.chosen.add(number);
    button.ariaPressed = String(opened.chosen.has(number));
    chose();
  });
  return make("li", {}, button);
}

function chose() {
  const count = opened.chosen.size;
  $("chosen").textContent = count ? `${plural(count, "photo is", "photos are")} chosen.` : "Choose photos of somebody else, and name them.";
  $("split-off").ariaDisabled = String(!count || count === opened.total);
}

// After a change, the person who has the photos is shown.
async function changed(name, line) {
  await refresh();
  await openPerson(name);
  tell({ good: [line] });
  await lookAgain();
}

async function renamePerson() {
  const { name } = opened;
  const to = $("rename-to").value;
  try {
    const moved = await call("rename", [["name", name], ["to", to]]);
    await changed(moved.name, `${shown(name)} is ${shown(moved.name)} now.`);
  } catch (error) {
    if (error.doubt !== "taken") throw error;
    if (await ask(`${shown(to)} is enrolled already. Are ${shown(name)} and ${shown(to)} one person?`, "Merge them")) await mergePerson(to.trim());
  }
}

// Moves all or some photos to somebody who is enrolled. A doubt is asked about once.
async function mergePerson(into, photos = null) {
  const { name } = opened;
  const fields = [["name", name], ["into", into], ...(photos ? [["photos", photos.join(",")]] : [])];
  let moved;
  try {
    moved = await call("merge", fields);
  } catch (error) {
    if (error.doubt !== "two-people") throw error;
    if (!await ask(doubtOf(error), photos ? "Move them all the same" : "Merge all the same")) return;
    moved = await call("merge", [...fields, ["force", "1"]]);
  }
  await changed(photos && photos.length < opened.total ? name : moved.name,
    `${plural(moved.photos, "photo", "photos")} of ${shown(name)} ${moved.photos === 1 ? "is" : "are"} photos of ${shown(moved.name)} now.`);
}

async function splitPerson() {
  const { name, chosen, total } = opened;
  if (!chosen.size) throw new Refused("Choose photos first: click on them.");
  if (chosen.size === total) throw new Refused("These are all photos: leave one, or rename the person.");
  const to = $("split-to").value;
  try {
    const moved = await call("split", [["name", name], ["photos", [...chosen].join(",")], ["to", to]]);
    await changed(name, `${plural(moved.photos, "photo", "photos")} of ${shown(name)} ${moved.photos === 1 ? "is" : "are"} ${shown(moved.name)} now.`);
  } catch (error) {
    if (error.doubt !== "taken" || to.trim() === name) throw error;
    if (await ask(`${shown(to)} is enrolled already. Are these photos of ${shown(to)}?`, "Move them")) await mergePerson(to.trim(), [...chosen]);
  }
}

$("search").addEventListener("input", () => { shownPeople = CARDS; drawPeople(); });
$("people-more").addEventListener("click", () => {
  const before = $("people").children.length;
  shownPeople += CARDS;
  drawPeople();
  $("people").children[before]?.querySelector("button").focus();
});
$("person-close").addEventListener("click", () => $("person").close());
$("person").addEventListener("close", () => { tell(); $("main").prepend($("told")); });
$("photos-more").addEventListener("click", once(() => attempt(morePhotos)));
$("photos-add").addEventListener("click", () => {
  $("person").close();
  $("name").value = opened.name;
  $("choose").focus();
  $("enrol").scrollIntoView({ block: "nearest" });
});
for (const [id, work] of [["rename", renamePerson], ["merge", () => mergePerson($("merge-into").value)], ["split", splitPerson]]) {
  $(id).addEventListener("submit", (event) => event.preventDefault());
  $(id).addEventListener("submit", once(() => attempt(work)));
}
$("merge-into").required = true;
