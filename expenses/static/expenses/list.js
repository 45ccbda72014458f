// Keeps the open list true: asks every 2 s and replaces the rows when they changed (E2).
const live = document.getElementById("live");

async function refresh() {
  if (document.hidden) return;
  try {
    const response = await fetch(location.href);
    if (!response.ok) throw new Error(response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const rows = document.querySelector("tbody");
    const fresh = page.querySelector("tbody");
    if (fresh.dataset.version !== rows.dataset.version) {
      rows.replaceWith(fresh);
      document.querySelector(".pages").replaceWith(page.querySelector(".pages"));
    }
    live.textContent = "";
  } catch {
    live.textContent = "Not up to date: the site does not answer. Trying again.";
  }
}

setInterval(refresh, 2000);
