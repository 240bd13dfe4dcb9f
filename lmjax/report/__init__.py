"""Runs as one page: `lmjax report`.

`runs` reads what lies in workdirs, `predictions` judges a file of predictions, and
`page` writes the HTML, with `page.css` and the charts of `charts.js` in it.
"""
