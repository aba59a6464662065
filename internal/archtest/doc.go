// Package archtest holds the tree to its structure: which way imports point, which libraries stay where, what a package may be called and how large a file or a
// function may grow. It reads the sources with go/parser, so that go test's cache sees every file that a verdict rests on. What a linter can say about a
// single line is golangci-lint's, see .golangci.yml.
package archtest
