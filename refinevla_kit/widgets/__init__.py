"""Widgets for notebooks: thin ipywidgets shells over the pure drawing functions in `figures`. Only this
package imports ipywidgets.
"""
