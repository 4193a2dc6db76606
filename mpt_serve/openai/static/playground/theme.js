// Light, dark, or what the system prefers.

const CHOICES = ["auto", "light", "dark"];
const STORED = "mpt-serve-theme";

/** Apply the stored choice, and let the button change it. */
export function startTheme(toggle) {
  let choice = CHOICES.includes(localStorage.getItem(STORED)) ? localStorage.getItem(STORED) : "auto";

  function apply() {
    if (choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    toggle.textContent = `Theme: ${choice}`;
  }

  toggle.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    localStorage.setItem(STORED, choice);
    apply();
  });
  apply();
}
