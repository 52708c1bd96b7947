// Search, theme, menu and contents. The index comes as a script, so that it works from file:// as well.
(() => {
  const $ = s => document.querySelector(s), root = document.body.dataset.root
  const make = (tag, text, cls) => { const e = document.createElement(tag); e.textContent = text; if (cls) e.className = cls; return e }

  // theme: as the system, light, dark
  const names = ['auto', 'light', 'dark'], button = $('.theme'), html = document.documentElement
  const say = t => {
    button.textContent = t[0].toUpperCase() + t.slice(1)
    button.setAttribute('aria-label', 'Theme: ' + (t === 'auto' ? 'as the system' : t))
  }
  say(html.dataset.theme || 'auto')
  button.addEventListener('click', () => {
    const t = names[(names.indexOf(html.dataset.theme || 'auto') + 1) % 3]
    html.dataset.theme = t
    say(t)
    try { localStorage.setItem('theme', t) } catch (e) { }
  })

  // menu on a phone; the present page stays in sight on a desk
  const menu = $('.menu'), nav = $('#nav'), now = nav.querySelector('[aria-current]')
  menu.addEventListener('click', () => menu.setAttribute('aria-expanded', nav.classList.toggle('shown')))
  if (now && now.offsetTop > nav.clientHeight - 60) nav.scrollTop = now.offsetTop - nav.clientHeight / 2

  // contents: closed where they stand above the text; the section in sight is marked
  const toc = $('.toc')
  if (toc) {
    if (matchMedia('(max-width: 1180px)').matches) toc.open = false
    const links = new Map([...toc.querySelectorAll('a')].map(a => [decodeURIComponent(a.hash.slice(1)), a]))
    const heads = [...links.keys()].map(id => document.getElementById(id)).filter(Boolean)
    let last = null, due = false
    const mark = () => {
      due = false
      const head = heads.filter(h => h.getBoundingClientRect().top < 120).pop(), a = head && links.get(head.id)
      if (a === last) return
      if (last) last.classList.remove('here')
      if (a) {
        a.classList.add('here')
        const y = a.offsetTop - toc.offsetTop
        if (y < toc.scrollTop || y > toc.scrollTop + toc.clientHeight - 40) toc.scrollTop = y - toc.clientHeight / 2
      }
      last = a
    }
    addEventListener('scroll', () => { if (!due) { due = true; requestAnimationFrame(mark) } }, { passive: true })
    mark()
  }

  // search over titles, sections and names
  const input = $('#search'), found = $('#found'), count = $('#count'), index = window.SEARCH_INDEX || []
  const flat = s => s.toLowerCase().replace(/[\s_.-]+/g, ' ').trim()
  const items = index.map(([title, kind, page, about, link]) => ({ title, kind, page, about, link, key: flat(title), text: flat(about) }))
  const KIND = { page: 30, symbol: 20, section: 10 }
  const score = (e, q, words) => {
    let s = e.key === q ? 1000 : e.key.startsWith(q) ? 600 : (' ' + e.key).includes(' ' + q) ? 400 : e.key.includes(q) ? 250 : 0
    if (!s && words.every(w => e.key.includes(w))) s = 150
    if (!s && words.every(w => e.key.includes(w) || e.text.includes(w))) s = 60
    return s && s + KIND[e.kind] - Math.min(e.key.length, 60) / 10
  }
  let chosen = -1
  const options = () => [...found.querySelectorAll('a')]
  const choose = i => {
    const all = options()
    chosen = all.length ? (i + all.length) % all.length : -1
    all.forEach((a, j) => a.setAttribute('aria-selected', j === chosen))
    if (chosen >= 0) { input.setAttribute('aria-activedescendant', all[chosen].id); all[chosen].scrollIntoView({ block: 'nearest' }) }
    else input.removeAttribute('aria-activedescendant')
  }
  const close = () => { found.hidden = true; input.setAttribute('aria-expanded', 'false'); input.removeAttribute('aria-activedescendant') }
  const look = () => {
    const q = flat(input.value)
    if (!q) { count.textContent = ''; return close() }
    const words = q.split(' ')
    const hits = items.map(e => [score(e, q, words), e]).filter(h => h[0] > 0).sort((a, b) => b[0] - a[0]).slice(0, 14)
    found.replaceChildren(...hits.map(([, e], i) => {
      const a = make('a', '', e.kind)
      a.href = root + e.link; a.id = 'found-' + i; a.tabIndex = -1
      a.setAttribute('role', 'option')
      a.append(make('span', e.kind === 'page' ? 'page' : e.page, 'where'), make('strong', e.title))
      if (e.about) a.append(make('small', e.about))
      return a
    }))
    if (!hits.length) found.append(make('p', 'Nothing is called that.'))
    count.textContent = hits.length === 1 ? '1 result' : hits.length + ' results'
    found.hidden = false
    input.setAttribute('aria-expanded', 'true')
    choose(0)
  }
  input.addEventListener('input', look)
  input.addEventListener('focus', () => { if (input.value) look() })
  input.addEventListener('keydown', e => {
    if (e.key === 'ArrowDown') choose(chosen + 1)
    else if (e.key === 'ArrowUp') choose(chosen - 1)
    else if (e.key === 'Enter' && chosen >= 0) options()[chosen].click()
    else if (e.key === 'Escape') { close(); input.blur() }
    else return
    e.preventDefault()
  })
  found.addEventListener('click', e => { if (e.target.closest('a')) close() })
  document.addEventListener('click', e => { if (!e.target.closest('.search')) close() })
  document.addEventListener('keydown', e => {
    if (e.key === '/' && !e.ctrlKey && !e.metaKey && !e.altKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
      e.preventDefault()
      input.focus()
      input.select()
    }
  })
})()
