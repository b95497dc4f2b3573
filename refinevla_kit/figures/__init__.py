"""Pictures and tables, as pure functions of records and arrays; nothing here plays, trains or writes except
`style.save_figure`.
"""
