// What the page does without asking the server: Enter draws, the wipe follows the hand, pictures are dropped
// anywhere, light or dark is kept, and sliders that keys move and numbers with Enter draw as those let go.
(() => {
  const dark = localStorage.getItem("freeu-dark");
  if (dark !== null && !new URLSearchParams(location.search).has("__theme")) {
    document.body.classList.toggle("dark", dark === "yes");
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#light-or-dark")) return;
    const on = document.body.classList.toggle("dark");
    localStorage.setItem("freeu-dark", on ? "yes" : "no");
  });

  document.addEventListener("input", (event) => {
    if (event.target.matches?.(".stage .wipe")) {
      // On the component's root, which is not written anew when pictures arrive.
      event.target.closest("#stage").style.setProperty("--split", `${event.target.value}%`);
    }
  });

  // A picture may be dropped anywhere; its place is lit while it is over the page.
  const carriesFiles = (event) => event.dataTransfer?.types?.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    const input = document.querySelector("#dropped input[type=file]");
    if (!carriesFiles(event) || !input || event.target.closest?.("#dropped")) return;
    event.preventDefault();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // What is said about settings from elsewhere is brought into sight.
  new MutationObserver((changes) => {
    const told = changes.map((change) => change.target.closest?.("#told")).find(Boolean);
    if (told?.textContent.trim()) told.scrollIntoView({ block: "nearest" });
  }).observe(document.body, { childList: true, subtree: true });

  // gradio takes a slider for let go when a pointer is.
  const letGo = (slider) => slider?.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  document.addEventListener("keyup", (event) => {
    const moves = /^(Arrow.*|Home|End|Page.*)$/.test(event.key);
    if (moves && event.target.matches?.("#factors input[type=range]")) letGo(event.target);
    if (event.key === "Enter" && event.target.matches?.("#factors input[type=number]")) {
      letGo(event.target.closest(".block").querySelector("input[type=range]"));
    }
  });
  document.addEventListener("click", (event) => {
    const reset = event.target.closest?.("#factors .reset-button");
    // By then the slider has its first value again.
    if (reset) setTimeout(() => letGo(reset.closest(".block").querySelector("input[type=range]")));
  });

  document.addEventListener("keydown", (event) => {
    const wanted = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (wanted && event.target.matches?.("#prompt textarea, #negative_prompt textarea")) {
      event.preventDefault();
      event.stopPropagation();
      // The last letters reach the server with the change that leaving the field tells of.
      event.target.dispatchEvent(new Event("input", { bubbles: true }));
      document.querySelector("#draw").click();
    }
  }, true);
})();
