"""Studies: answers with an interval instead of one lucky run. They work on any experiment, and know no architecture.

runs/                               the runs of a study: kept, resumed, several seeds as one program
statistics, formatting              means, intervals, tables, figures
ablate/                             the effect of each part of an experiment
compare/                            different architectures under one budget (`sizing`)
scaling/                            laws of measured points, or of a trained family
reproduce/                          published numbers beside measured ones, and their ledger
"""
