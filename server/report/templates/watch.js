"use strict";
// Asks this machine's own `python -m server watch` what is new, and puts it into the page.
const page = document.getElementById("page");
const clock = document.getElementById("clock");

function put(html) {
  const open = [...page.querySelectorAll("details[open] > summary")].map((one) => one.textContent);
  page.innerHTML = html; // the server has escaped every name in it, and this page runs no script but this one
  for (const summary of page.querySelectorAll("details > summary")) {
    if (open.includes(summary.textContent)) summary.parentElement.open = true;
  }
}

function putRound(sites) {
  for (const cell of page.querySelectorAll("td[data-site]")) {
    const told = Object.hasOwn(sites, cell.dataset.site) ? sites[cell.dataset.site] : { text: "–", share: null };
    const bar = cell.querySelector("progress");
    bar.hidden = told.share === null;
    bar.value = told.share === null ? 0 : told.share;
    cell.querySelector("span").textContent = told.text;
  }
}

async function look() {
  try {
    const answer = await fetch("/state?seen=" + page.dataset.version, { cache: "no-store" });
    if (!answer.ok) throw new Error();
    const told = await answer.json();
    if (told.version !== page.dataset.version) {
      put(told.page);
      page.dataset.version = told.version;
    }
    putRound(told.sites);
    clock.textContent = [told.left, told.quiet].filter(Boolean).join(" · ");
  } catch (error) {
    clock.textContent = "python -m server watch does not answer: it was ended, or its machine is away. Trying again.";
  }
  setTimeout(look, document.hidden ? 10000 : 2000);
}

look();
