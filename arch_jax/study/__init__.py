"""Studies: answers with an interval instead of one lucky run. They work on any experiment, and know no architecture.

cells, together, progress, lock     runs that are kept, several seeds as one program
statistics, report                  means, intervals, tables, pictures
ablate                              what each part of an experiment is worth
compare/                            different architectures under one budget (`sizing`, `lengths`)
scaling/                            laws of measured points, or of a family that is trained
reproduce, ledger                   what was published beside what is measured
plan/                               what a step costs on a machine that one does not have
"""
