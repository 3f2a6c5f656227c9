// Tables of class "sortable" are sorted by a click on a column's head; a page lists its parts; a trial is highlighted wherever it appears.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
// A long key or name of a metric wraps at its separators.
all('th, th div, td.name, td.name code').filter(cell => !cell.children.length).forEach(cell => {
  cell.innerHTML = cell.innerHTML.replace(/[\/_.]/g, '$&<wbr>');
});
all('table.sortable').forEach(table => all('thead th', table).forEach((head, column) => {
  head.classList.add('sort');
  head.onclick = () => {
    const up = head.dataset.up !== '1', body = table.tBodies[0];
    all('th', table).forEach(other => delete other.dataset.up);
    head.dataset.up = up ? '1' : '0';
    const value = row => row.cells[column].textContent.trim().replace(/,/g, '');
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === '' || y === '') return (x === '') - (y === '');
      return (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y) * (up ? 1 : -1);
    };
    body.append(...[...body.rows].sort(compare));
  };
}));
const heads = all('h2');
if (heads.length > 2) {
  const contents = document.createElement('nav');
  heads.forEach((head, number) => {
    const link = document.createElement('a');
    head.id = head.id || `part-${number}`;
    link.href = `#${head.id}`;
    link.textContent = head.textContent;
    contents.append(link, ' ');
  });
  document.querySelector('h1').after(contents);
}
function highlight(number) {
  all('svg').forEach(svg => svg.classList.toggle('some', number !== null && svg.querySelector('[data-trial]') !== null));
  all('[data-trial]').forEach(element => element.classList.toggle('lit', element.dataset.trial === number));
}
all('[data-trial]').forEach(element => {
  element.onmouseenter = () => highlight(element.dataset.trial);
  element.onmouseleave = () => highlight(null);
});
all('button[data-copy]').forEach(button => button.onclick = () => {
  navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  button.textContent = 'copied';
});
