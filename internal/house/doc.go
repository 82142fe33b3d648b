// Package house measures how the code of this module is built: the uses between
// files, the groups of files that depend on each other, shadowed names, and the
// order in which locks are taken. Tests of the root package set bounds on these
// figures, and the command in the directory report prints them.
//
// It uses the standard library and the go command alone. Only files that build on
// the present platform are type-checked; the others count as files and lines.
package house
