-- Wide tables scroll inside their own box; the keyboard reaches it. Pairs, not keys: Lua walks keys in any order.
function Table(t)
  return pandoc.Div(t, pandoc.Attr('', {'scroll'}, {{'tabindex', '0'}, {'role', 'group'}, {'aria-label', 'table'}}))
end
