// The present page stays in sight in the list of pages.
addEventListener('DOMContentLoaded', () => {
  const list = document.querySelector('.sidebar-scroll'), here = list?.querySelector('.current-page')
  if (here) list.scrollTop += here.getBoundingClientRect().top - list.clientHeight / 2
})
