"use strict";
// Enrolling any number of photos, a few in each request. It uses the functions of page.js and look.js.
const PART = 8; // photos of a request, so that the bar moves and a request is short
const THUMBS = 48; // thumbnails that are shown; the others are counted
const TRIES = 60; // requests for one part while the server is busy
const UNLIKE = "unlike the others";
let shots = []; // {blob, url, who, reason}: `who` is a folder's name, `reason` why it was refused
let stopped = false;

const isFresh = (shot) => !shot.reason;

async function add(blobs) {
  const photos = blobs.filter(isPhoto);
  if (!photos.length) throw new Refused(`${blobs[0].name} is no photo.`);
  // Folders are people if there are several of them; the name of one is the name to begin with.
  const folders = new Set(photos.map((blob) => blob.who));
  const [folder] = folders;
  if (folders.size === 1 && folder && !$("name").value) $("name").value = folder;
  shots.push(...photos.map((blob) => ({
    blob, url: URL.createObjectURL(blob), who: folders.size > 1 ? blob.who : undefined,
    reason: blob.size > limits.photo_bytes ? `over ${limits.photo_bytes / 1e6} MB: send a smaller one` : null,
  })));
  const others = blobs.length - photos.length;
  if (others) tell({ notes: [`${plural(others, "file is", "files are")} no photo and left out.`] });
  showShots();
}

function keep(which) {
  for (const shot of shots) if (!which(shot)) URL.revokeObjectURL(shot.url);
  shots = shots.filter(which);
  showShots();
}

// The refused ones come first, each with its reason.
function showShots() {
  const refused = shots.filter((shot) => shot.reason);
  const fresh = shots.filter(isFresh);
  const thumbs = [...refused, ...fresh].slice(0, THUMBS).map((shot, place) => {
    const label = `Photo ${place + 1}`;
    const button = make("button", { type: "button", className: "small", ariaLabel: `Leave out ${label.toLowerCase()}` }, "×");
    button.addEventListener("click", () => {
      keep((other) => other !== shot);
      ($("thumbs").querySelectorAll("button")[place] ?? $("choose")).focus();
    });
    const reason = shot.reason ? [make("p", {}, shot.reason)] : [];
    return make("li", { className: shot.reason ? "refused" : "" }, make("img", { src: shot.url, alt: label, loading: "lazy" }), button, ...reason);
  });
  const more = shots.length - thumbs.length;
  $("thumbs").replaceChildren(...thumbs, ...(more ? [make("li", { className: "more" }, `and ${more} more`)] : []));
  const people = new Set(fresh.map((shot) => shot.who).filter(Boolean));
  $("held").textContent = [
    ...(fresh.length ? [`${plural(fresh.length, "photo", "photos")} to enrol${people.size ? ` of ${plural(people.size, "person", "people")}, by folder` : ""}.`] : []),
    ...(refused.length ? [`${refused.length} refused.`] : []),
  ].join(" ");
  $("name").required = !fresh.length || fresh.some((shot) => !shot.who);
}

// Photos in parts that a request may hold.
function parts(photos) {
  const found = [];
  let bytes = Infinity;
  for (const shot of photos) {
    const last = found.at(-1);
    if (!last || last.length >= Math.min(PART, limits.photos) || bytes + shot.blob.size > limits.request_bytes) {
      found.push([shot]);
      bytes = shot.blob.size;
    } else {
      last.push(shot);
      bytes += shot.blob.size;
    }
  }
  return found;
}

// Sends a request again while the server is busy.
async function patiently(path, fields) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await call(path, fields);
    } catch (error) {
      if (error.status !== 503 || tries === TRIES || stopped) throw error;
      await wait(error.retryAfterS || 1);
    }
  }
}

// Enrols a part, and returns the photos that do not look like the person.
async function enrolPart(name, part, accept, sum) {
  const apart = [];
  let left = part;
  while (left.length) {
    try {
      const answer = await patiently("enroll", [["name", name], ["accept", [...accept].join(",")], ...left.map((shot) => ["photo", shot.blob])]);
      refuse(answer.photos, left, sum);
      sum.added += answer.added;
      sum.already += answer.already;
      if (answer.added) sum.people.add(answer.name);
      if (answer.looks_like !== null) sum.alike.set(answer.name, `${shown(answer.name)} looks like ${shown(answer.looks_like)} (${answer.similarity.toFixed(3)}).`);
      const enrolled = new Set(left.filter(isFresh));
      keep((shot) => !enrolled.has(shot));
      return apart;
    } catch (error) {
      if (error.doubt === "two-people" && error.photos.length) {
        const odd = new Set(error.photos.map(({ photo: place }) => left[place - 1]));
        apart.push(...odd);
        left = left.filter((shot) => !odd.has(shot));
      } else if (error.doubt) {
        if (!await ask(`${doubtOf(error)} Is ${shown(name)} somebody else?`, "Enrol all the same")) throw new Refused(`${shown(name)} is not enrolled: ${doubtOf(error)}`);
        accept.add(error.doubt);
      } else if (error.status === 422 && error.photos?.length) {
        refuse(error.photos, left, sum);
        return apart;
      } else throw error;
    }
  }
  return apart;
}

function refuse(refused, part, sum) {
  for (const { photo: place, reason } of refused) {
    const shot = part[place - 1];
    shot.reason = reason;
    sum.refused.push(shot.who ? `${shot.who}: ${reason}` : reason);
  }
  showShots();
}

async function enrolPerson(name, photos, sum, looked) {
  const accept = new Set();
  let apart = [];
  for (const part of parts(photos)) {
    if (stopped) return;
    apart.push(...await enrolPart(name, part, accept, sum));
    looked(part.length);
  }
  // Photos that came later may join the first ones to those that were set apart.
  for (let before = Infinity; apart.length && apart.length < before && !stopped;) {
    before = apart.length;
    const again = [];
    for (const part of parts(apart)) again.push(...await enrolPart(name, part, accept, sum));
    apart = again;
  }
  if (!apart.length || stopped) return;
  for (const shot of apart) shot.reason = UNLIKE;
  showShots();
  const question = `${shown(name)}: ${apart.length === 1 ? "1 photo does" : `${apart.length} photos do`} not look like the others. Is it one person?`;
  if (await ask(question, "Enrol all the same")) {
    for (const shot of apart) shot.reason = null;
    accept.add("two-people");
    for (const part of parts(apart)) await enrolPart(name, part, accept, sum);
  } else sum.refused.push(...apart.map(() => UNLIKE));
}

// How many photos were refused for each reason, without its details.
function countReasons(reasons) {
  const counts = new Map();
  for (const reason of reasons) {
    const [kind] = reason.split(/[:;]/);
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  return [...counts].map(([kind, count]) => `${kind} (${count})`).join(", ");
}

function summary(sum, name) {
  const who = sum.people.size > 1 ? plural(sum.people.size, "person", "people") : shown([...sum.people][0] ?? name);
  const notes = [
    ...(sum.refused.length ? [`${plural(sum.refused.length, "photo was", "photos were")} refused: ${countReasons(sum.refused)}.`] : []),
    ...(sum.already ? [`${plural(sum.already, "photo was", "photos were")} enrolled already.`] : []),
    ...sum.alike.values(),
  ];
  return { good: sum.added ? [`${who}: ${plural(sum.added, "photo", "photos")} enrolled.`] : [], notes, bad: [] };
}

async function enrol() {
  const fresh = shots.filter(isFresh);
  if (!fresh.length) throw new Refused(shots.length ? "These photos were refused: add others." : "Add a photo first.");
  const typed = $("name").value;
  const people = grouped(fresh, typed);
  const sum = { added: 0, already: 0, refused: [], people: new Set(), alike: new Map() };
  let count = 0;
  const looked = (more) => {
    count += more;
    $("bar").value = count;
    $("done").textContent = `${count} of ${fresh.length}`;
  };
  stopped = false;
  $("send").ariaDisabled = "true";
  $("bar").max = fresh.length;
  looked(0);
  $("progress").hidden = false;
  const bad = [];
  try {
    for (const [name, photos] of people) {
      try {
        await enrolPerson(name, photos, sum, looked);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        bad.push(error.message);
        if (error.status === 0) break; // the server is gone
      }
      if (stopped) break;
    }
  } finally {
    $("send").ariaDisabled = "false";
    $("progress").hidden = true;
  }
  if (!shots.length) $("form").reset();
  if (sum.added) await refresh();
  const told = summary(sum, typed);
  if (stopped) told.notes.unshift("Stopped. What is not enrolled is still there.");
  if (!sum.added && !bad.length && !sum.already && !stopped) bad.push("No photo was enrolled.");
  tell({ ...told, bad });
  if (sum.added) await lookAgain();
}

function grouped(photos, typed) {
  const found = new Map();
  for (const shot of photos) {
    const name = shot.who ?? typed;
    found.set(name, [...(found.get(name) ?? []), shot]);
  }
  return found;
}

// Taking photos. The camera is shown here, or where it is looked at already.

function showShoot() {
  const here = !$("mirror").hidden;
  $("shoot").textContent = here || watching ? "Take a photo" : "Use the camera";
  $("shut").hidden = !here;
}

async function shoot() {
  if (watching) await add([(await frame($("video"))).blob]);
  else if (!$("mirror").hidden) await add([(await frame($("mirror"))).blob]);
  else {
    if (!stream) await openCamera();
    await play($("mirror"));
    $("mirror").hidden = false;
    showShoot();
  }
}

function shutMirror() {
  $("mirror").hidden = true;
  if (!watching) closeCamera();
  showShoot();
  $("shoot").focus();
}

droppable($("shots"), $("photos"), add, () => $("mirror").hidden);
$("choose").addEventListener("click", () => $("photos").click());
$("shoot").addEventListener("click", once(() => attempt(shoot)));
$("shut").addEventListener("click", shutMirror);
$("stop").addEventListener("click", () => { stopped = true; $("send").focus(); });
$("form").addEventListener("submit", (event) => event.preventDefault());
$("form").addEventListener("submit", once(() => attempt(enrol)));
