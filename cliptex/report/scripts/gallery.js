// Paging through albums. The page that is shown is in the address, so that it can be sent, reloaded and returned to.
// Without this script all pages are shown below one another.
"use strict";
for (const gallery of document.querySelectorAll(".gallery")) {
  const albums = [...gallery.querySelectorAll(".album")];
  const pages = albums.map((album) => [...album.querySelectorAll(".page")]);
  let album = 0;
  let page = 0;

  const bar = document.createElement("div");
  bar.className = "pager";
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", "Album");
  albums.forEach((element, number) => choice.add(new Option(element.dataset.title, number)));
  const count = document.createElement("span");
  count.className = "count";
  count.setAttribute("role", "status");
  const button = (text, label, step) => {
    const element = document.createElement("button");
    element.type = "button";
    element.textContent = text;
    element.setAttribute("aria-label", label);
    element.addEventListener("click", () => move(step));
    return element;
  };
  bar.append(choice, button("◀", "Previous", -1), count, button("▶", "Next", 1));
  gallery.prepend(bar);
  gallery.classList.add("paged");
  gallery.tabIndex = 0;

  const show = () => {
    albums.forEach((element, number) => element.classList.toggle("away", number !== album));
    pages.forEach((elements, number) => {
      elements.forEach((element, index) => element.classList.toggle("away", number !== album || index !== page));
    });
    choice.value = album;
    count.textContent = `${page + 1} of ${pages[album].length}`;
  };
  // the pages of all albums form a ring
  const move = (step) => {
    page += step;
    if (page < 0 || page >= pages[album].length) {
      album = (album + step + albums.length) % albums.length;
      page = step > 0 ? 0 : pages[album].length - 1;
    }
    remember();
  };
  // unlike a change of location.hash, this does not scroll
  const remember = () => {
    show();
    history.pushState(null, "", `#${pages[album][page].id}`);
  };
  const goToAddress = () => {
    const target = location.hash.slice(1);
    const found = pages.findIndex((elements) => elements.some((element) => element.id === target));
    if (found < 0) return false;
    album = found;
    page = pages[album].findIndex((element) => element.id === target);
    show();
    return true;
  };
  choice.addEventListener("change", () => {
    album = Number(choice.value);
    page = 0;
    remember();
  });
  gallery.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target === choice || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move(step);
  });
  let start = null;
  gallery.addEventListener("touchstart", (event) => {
    start = event.touches.length === 1 ? event.touches[0] : null;
  }, { passive: true });
  gallery.addEventListener("touchend", (event) => {
    if (!start || event.target === choice) return;
    const across = event.changedTouches[0].clientX - start.clientX;
    const down = event.changedTouches[0].clientY - start.clientY;
    if (Math.abs(across) > 40 && Math.abs(across) > 2 * Math.abs(down)) move(across < 0 ? 1 : -1);
    start = null;
  }, { passive: true });
  window.addEventListener("popstate", () => {
    if (location.hash) return goToAddress();
    [album, page] = [0, 0]; // as the page was opened
    show();
  });
  show();
  if (goToAddress()) gallery.scrollIntoView();
}
