// The present page stays in sight in the list of pages; a phone has a way to the search; what scrolls sideways does so by keyboard, too.
addEventListener('DOMContentLoaded', () => {
  const list = document.querySelector('.sidebar-scroll'), here = list?.querySelector('.current-page')
  if (here) list.scrollTop += here.getBoundingClientRect().top - list.clientHeight / 2
  const search = document.createElement('a')
  search.href = document.documentElement.dataset.content_root + 'search.html'
  search.className = 'to-search'
  search.setAttribute('aria-label', 'Search')
  search.innerHTML = '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="10" cy="10" r="6"/><path d="M15 15l6 6"/></svg>'
  document.querySelector('.mobile-header .header-right')?.prepend(search)
  const wide = () => document.querySelectorAll('article :is(pre, div, p, math)').forEach(box => {
    if (box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX === 'auto') box.tabIndex = 0
    else if (box.tabIndex === 0) box.removeAttribute('tabindex')
  })
  wide()
  addEventListener('load', wide)
  addEventListener('resize', wide)
  document.querySelectorAll('article').forEach(page => new ResizeObserver(wide).observe(page)) // Pictures come later
})
