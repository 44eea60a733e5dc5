"""Small real trainings, one per framework; `tachograph demo` runs them."""
