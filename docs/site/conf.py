"""Sphinx with furo and myst-nb: what readers of xarray and Zarr know, notebooks kept as text, light and dark, no network."""

from pathlib import Path

import actlake

project, author, copyright = "actlake", "the actlake authors", "2026, the actlake authors"
version = release = actlake.__version__
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_notebooks", "tutorials/lake", "tutorials/mine"]
html_theme = "furo"
html_title = f"actlake {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sourcelink = False
html_copy_source = False
smartquotes = False  # --option stays what one types
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure", "myst-nb.lexer"]
# Notebooks are executed; one that fails fails the build. What they print again and again goes to the page once.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parents[1] / "notebooks")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 0)]
copybutton_prompt_text = "$ "
