const search = document.getElementById("search");
if (search) {
  const flagged = document.getElementById("flagged");
  const found = document.getElementById("found");
  const rows = [...document.querySelectorAll("#joints tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    rows.forEach((row, index) => {
      const shown =
        texts[index].includes(wanted) && (!flagged.checked || row.dataset.flagged === "yes");
      row.hidden = !shown;
      count += shown ? 1 : 0;
    });
    found.textContent = count + " of " + rows.length + " joints";
  };
  search.addEventListener("input", filter);
  flagged.addEventListener("change", filter);
  filter();
}
