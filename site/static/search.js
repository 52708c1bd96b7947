// Search in the text of all pages, which `site/build.py` puts into `search-index.js`: words in any order, best page first, no server.
const {pages, synonyms} = window.SITE_TEXT
for (const p of pages) for (const place of p.places) place.all = `${place.text} ${place.code}`
const STOP = new Set(('a about all also am an and any are as at be been but by can could did do does doing for from get had has have having he ' +
  'her his how i if in into is it its let like make me my of on one only or our out please s she should so some someone such t than ' +
  'that the their them then there these they this those to too up use using very want was way we were what when where which while who ' +
  'why will with without would you your').split(' '))
const MEANING = /^\s*(what|define|meaning)\b/i
const AFTER = '(?:e|es|ed|d|s|er|ers|ing|ings|ion|ions|ure|y|ies|ten)?'
const WORD = '[\\p{L}\\p{N}]'

// A word as a pattern: its other endings, GPT-2 as GPT2, and, while it is typed, any word that begins so.
function pattern(word, typed) {
  const parts = word.split(/[-_.\s]+|(?<=\p{L})(?=\p{N})/u), last = parts.pop()
  const root = last.length < 4 || /\p{N}/u.test(last) ? last : last.replace(/(?<=...)(?:ings?|ed|ions?|ies|es|e|s|y)$/, '')
  return [...parts, root].join('[-_.\\s]?') + (typed ? WORD + '*' : root === last && last.length < 3 ? '' : AFTER)
}
const phrase = said => said.replace(/['’]s\b/g, '').split(' ').map(w => pattern(w)).join("(?:['’]s)?[-_\\s]+")
const regex = p => new RegExp(`(?<!${WORD})(?:${p})(?!${WORD})`, 'giu')

// What is asked, as terms; each has its patterns with weights: the word itself, then what else it is called.
function terms(asked, typing) {
  let words = asked.toLowerCase().replace(/['’]s\b/g, '').match(/[\p{L}\p{N}]+(?:[-_.][\p{L}\p{N}]+)*/gu) ?? []
  if (MEANING.test(asked)) words = words.filter((w, i) => !i || i < words.length - 1 || !/^means?$/.test(w)) // What does macro mean?
  if (words.some(w => !STOP.has(w))) words = words.filter((w, i) => !STOP.has(w) || (typing && i === words.length - 1 && w.length > 4))
  const found = words.map((w, i) => {
    const ways = [[1, regex(pattern(w))]]
    if (typing && i === words.length - 1 && w.length > 2) ways.push([.6, regex(pattern(w, true))])
    return {word: w, ways, others: new Set()}
  })
  const text = words.join(' ')
  for (const group of synonyms) for (const said of group) {
    const hit = regex(phrase(said)).exec(text)
    if (!hit) continue
    const from = text.slice(0, hit.index).split(' ').length - 1, n = hit[0].split(' ').length
    for (const t of found.slice(from, from + n)) for (const other of group) if (other !== said) t.others.add(other)
  }
  for (const t of found) if (t.others.size) t.ways.push([.45, regex([...t.others].map(phrase).join('|'))])
  return found
}
const count = (re, text) => { let n = 0; re.lastIndex = 0; while (n < 40 && re.exec(text)) n++; return n }

// How much a place says about a term: in the title and the heading much, in the text by how often.
function weigh(term, place, title) {
  let best = 0
  for (const [w, re] of term.ways) {
    const tf = count(re, place.all)
    best = Math.max(best, w * (6 * !!count(re, title) + 5 * !!count(re, place.head) + (tf && 1 + Math.log(tf))))
  }
  return best
}
function search(asked, typing) {
  const all = terms(asked, typing)
  if (!all.length) return {all, found: []}
  const whole = all.length > 1 ? regex(phrase(all.map(t => t.word).join(' '))) : null, name = asked.trim().toLowerCase()
  const rows = pages.map(p => p.places.map(place => all.map(t => weigh(t, place, p.title))))
  const rare = all.map((_, i) => Math.log(1 + pages.length / (1 + rows.filter(r => r.some(s => s[i] > 1.2)).length)))
  const found = pages.map((page, j) => {
    const top = all.map((_, i) => Math.max(...rows[j].map(s => s[i])))
    const share = top.filter(Boolean).length / all.length
    const places = rows[j].map((s, k) => {
      const place = page.places[k], together = whole && s.every(Boolean) && (count(whole, place.all) || count(whole, place.head)) ? 3 : 0
      const score = s.reduce((sum, v, i) => sum + rare[i] * (v + .15 * top[i] + together), 0) * (s.filter(Boolean).length / all.length) ** 2
      return {place, score, named: place.name.split('.').pop().toLowerCase() === name}
    }).filter(s => s.score > 0).sort((a, b) => b.named - a.named || b.score - a.score)
    const score = share ** 2 * (MEANING.test(asked) && page.url === 'glossary.html' ? 12 : page.weight) * ((places[0]?.score ?? 0) + .1 * top.reduce((sum, v, i) => sum + v * rare[i], 0))
    return {page, places, score, share, named: places[0]?.named}
  }).filter(f => f.places.length && f.share > .5 - 1e-9).sort((a, b) => b.named - a.named || b.score - a.score)
  const least = .05 * Math.max(...found.map(f => f.score))
  return {all, found: found.filter(f => f.named || f.score > least).slice(0, 30)}
}

// The words in a text, marked.
const hitsIn = (text, all) => all.flatMap((t, i) => t.ways.flatMap(([w, re]) => { re.lastIndex = 0; return [...text.matchAll(re)].slice(0, 60).map(m => [m.index, m.index + m[0].length, i, w]) }))
  .sort((a, b) => a[0] - b[0] || b[1] - a[1])
function marked(text, all, from = 0, to = text.length) {
  const parts = []
  for (const [a, b] of hitsIn(text, all)) if (a >= from && b <= to) {
    parts.push(text.slice(from, a), Object.assign(document.createElement('mark'), {textContent: text.slice(a, b)}))
    from = b
  }
  return [...parts, text.slice(from, to)]
}

// The stretch that holds most of the words.
function excerpt(text, all) {
  const hits = hitsIn(text, all)
  let from = 0, best = -1
  for (const [at] of hits) {
    const near = {}
    for (const [a, , i, w] of hits) if (a >= at && a < at + 180) near[i] = Math.max(near[i] ?? 0, w)
    const sum = Object.values(near).reduce((a, b) => a + b, 0)
    if (sum > best + 1e-9) [best, from] = [sum, at]
  }
  const start = from < 60 ? 0 : text.lastIndexOf(' ', from - 40) + 1
  let end = text.length > start + 240 ? text.lastIndexOf(' ', start + 240) : text.length
  if (end <= start) end = Math.min(text.length, start + 240)
  const p = document.createElement('p')
  p.append(start ? '… ' : '', ...marked(text, all, start, end), end < text.length ? ' …' : '')
  return p
}
function link(page, place) {
  const a = document.createElement('a')
  a.href = page.url + (place.anchor ? '#' + place.anchor : '')
  return a
}
function item({page, places}, all) {
  const li = document.createElement('li'), a = link(page, places[0].place), {head, name, text, all: whole} = places[0].place, where = document.createElement('small')
  if (name) a.append(Object.assign(document.createElement('code'), {textContent: name}), ` › ${page.title}`)
  else a.append(...marked(page.title, all), ...head === page.title ? [] : [' › ', ...marked(head, all)])
  where.textContent = page.section
  const more = places.slice(1, 4).filter(s => s.score > .3 * places[0].score && s.place.head !== head)
  li.append(a, where, excerpt(text && (hitsIn(text, all).length || a.querySelector('mark')) ? text : whole, all))
  if (more.length) {
    const also = Object.assign(document.createElement('p'), {className: 'also', textContent: 'also '})
    more.forEach((s, i) => {
      const b = link(page, s.place)
      b.textContent = s.place.name.split('.').pop() || s.place.head
      also.append(i ? ', ' : '', b)
    })
    li.append(also)
  }
  return li
}

const field = document.querySelector('#query'), said = document.querySelector('#search-said'), list = document.querySelector('#search-found')
function show(typing) {
  const asked = field.value.trim(), {all, found} = search(asked, typing)
  list.replaceChildren(...found.map(f => item(f, all)))
  said.textContent = !asked ? '' : found.length ? `${found.length} page${found.length > 1 ? 's' : ''}` : `No page matches “${asked}”. Fewer words, or another word for it? `
  if (asked && !found.length) said.append(Object.assign(document.createElement('a'), {href: 'glossary.html', textContent: 'Words'}), ' has what things are called here.')
  document.title = asked ? `${asked} - Search` : 'Search'
}
let wait
function typed() {
  clearTimeout(wait)
  wait = 0
  history.replaceState(null, '', '?q=' + encodeURIComponent(field.value))
  show(true)
}
field.addEventListener('input', () => { clearTimeout(wait); wait = setTimeout(typed, 120) })
field.form.addEventListener('submit', e => { e.preventDefault(); clearTimeout(wait); wait = 0; show(false); list.querySelector('a')?.focus() })
document.addEventListener('keydown', e => {
  const step = {ArrowDown: 1, ArrowUp: -1}[e.key]
  if (!step) return
  if (wait) typed() // What is still to be found would take away the link that is chosen now
  const links = [field, ...list.querySelectorAll('li > a')], at = links.indexOf(document.activeElement)
  if (at >= 0 && links[at + step]) { e.preventDefault(); links[at + step].focus() }
})
field.value = new URLSearchParams(location.search).get('q') ?? ''
show(false)
field.focus()
