// Keeps the open list up to date: fetches it every 2 s and replaces changed rows (E2).
const live = document.getElementById("live");

async function refresh() {
  if (document.hidden) return;
  try {
    // The header says that no person sent this, so an open page does not keep its session alive.
    const response = await fetch(location.href, { headers: { "X-Background": "1" } });
    if (response.status === 401) {
      live.textContent = "Not up to date: you are signed out. Reload the page to sign in.";
      return;
    }
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
