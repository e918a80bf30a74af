"use strict";

const main = document.querySelector("main");
const list = document.getElementById("images");
const told = document.getElementById("status");
const chooser = document.getElementById("files");

function make(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
}

async function post(path, files) {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name);
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body: form });
  } catch {
    throw new Error("the server does not answer");
  }
  const json = await answer.json().catch(() => ({}));
  if (json.detail || !(answer.ok || json.predictions)) {
    throw new Error(json.detail || `the server answers ${answer.status}`);
  }
  return json;
}

// as many as one request may have
function* requests(files) {
  let some = [], bytes = 0;
  for (const file of files) {
    const full = some.length == main.dataset.images || bytes + file.size > 0.95 * main.dataset.bytes;
    if (full && some.length) {
      yield some;
      [some, bytes] = [[], 0];
    }
    some.push(file);
    bytes += file.size;
  }
  if (some.length) yield some;
}

function show(file, said) {
  const item = document.getElementById("image").content.cloneNode(true).firstElementChild;
  const image = item.querySelector("img");
  image.src = URL.createObjectURL(file);
  image.onload = () => URL.revokeObjectURL(image.src);
  // of a kind that this browser does not show
  image.onerror = () => image.remove();
  item.querySelector("h3").textContent = file.name;
  const answer = item.querySelector(".answer");
  if (said.error) {
    item.classList.add("error");
    answer.textContent = `Not labelled: ${said.error}`;
    item.querySelector("table").remove();
  } else {
    answer.textContent = said.label;
    for (const one of said.top) {
      const row = make("tr");
      const bar = make("span", "", { className: "bar" });
      bar.style.width = `${100 * one.probability}%`;
      const place = make("td");
      place.append(bar);
      row.append(
        make("th", one.label, { scope: "row" }),
        make("td", one.probability.toFixed(3), { className: "number" }),
        place,
      );
      item.querySelector("tbody").append(row);
    }
    const button = item.querySelector("button");
    button.hidden = !("explains" in main.dataset);
    button.onclick = () => explain(file, button, item.querySelector(".why"));
  }
  list.append(item);
}

async function explain(file, button, place) {
  button.disabled = true;
  place.replaceChildren(make("p", "Looking for reasons …"));
  try {
    const found = await post("explain", [file]);
    const parts = [make("h4", `What speaks for ${found.label}`)];
    if (found.heat_map) {
      const alt = `Heat map over ${file.name}: the brighter, the more a part speaks for it`;
      parts.push(make("img", "", { className: "heat", src: found.heat_map, alt }));
    } else {
      parts.push(make("p", found.why_no_heat_map));
    }
    if (found.nearest.length) {
      parts.push(make("h4", "The training images most like it"));
      const images = make("div", "", { className: "images" });
      for (const one of found.nearest) {
        const figure = make("figure");
        // of an image that is gone it is "data:,"
        if (one.image.length > 6) figure.append(make("img", "", { src: one.image, alt: "" }));
        const caption = make("figcaption", ` ${one.path}, ${one.distance.toFixed(2)} away`);
        caption.prepend(make("b", one.label));
        figure.append(caption);
        images.append(figure);
      }
      parts.push(images, make("p", found.nearest_by, { className: "note" }));
    }
    place.replaceChildren(...parts);
    button.remove();
    // which had the keyboard
    place.focus();
  } catch (error) {
    place.replaceChildren(make("p", `No reasons: ${error.message}`));
    button.disabled = false;
  }
}

async function label(files) {
  if (!files.length) return;
  document.getElementById("results").hidden = false;
  list.replaceChildren();
  chooser.disabled = true;
  let done = 0, unread = 0;
  for (const some of requests(files)) {
    told.textContent = `${done} of ${files.length} images labelled …`;
    try {
      const { predictions } = await post("predict", some);
      predictions.forEach((said, place) => show(some[place], said));
      unread += predictions.filter((said) => said.error).length;
    } catch (error) {
      some.forEach((file) => show(file, { error: error.message }));
      unread += some.length;
    }
    done += some.length;
  }
  told.textContent =
    `${done - unread} of ${done} ${done == 1 ? "image" : "images"} labelled.`;
  chooser.disabled = false;
  chooser.value = "";
  chooser.focus();
}

chooser.onchange = () => label([...chooser.files]);
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (!chooser.disabled) label([...event.dataTransfer.files].filter((file) => file.size || file.type));
});
