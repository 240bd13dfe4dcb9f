"""Commands around lmjax: searches, plots and measurements."""
