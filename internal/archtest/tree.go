package archtest

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// Module is the import path of the tree's root.
const Module = "github.com/spheroseg/muster"

// maxText bounds the files that are read for their words.
const maxText = 4 << 20

// Tree is what the rules look at: every file that is not ignored.
type Tree struct {
	Entries []string // names at the top level
	Texts   []Text
	Files   []*File
}

// Text is a file that a person can read.
type Text struct {
	Path  string // from the root, with slashes
	Bytes []byte
}

// File is a parsed Go file.
type File struct {
	Path      string // from the root, with slashes
	Package   string // import path from the root, "." for the root itself
	Test      bool
	Generated bool
	Lines     int
	AST       *ast.File
	Fset      *token.FileSet
}

// Component is the first element of the file's package: proto, internal, agent, coordinator, ctl or deploy.
func (f *File) Component() string {
	first, _, _ := strings.Cut(f.Package, "/")
	return first
}

// Imports returns the import paths of the file. Those of this module start with "muster:" in place of the module's path, so that a rule reads like the tree.
func (f *File) Imports() []Import {
	var imports []Import
	for _, spec := range f.AST.Imports {
		p := strings.Trim(spec.Path.Value, "`\"")
		if p == Module {
			p = "muster:."
		} else if rest, ok := strings.CutPrefix(p, Module+"/"); ok {
			p = "muster:" + rest
		}
		name := path.Base(p)
		if version.MatchString(name) {
			name = path.Base(path.Dir(p))
		}
		if spec.Name != nil {
			name = spec.Name.Name
		}
		imports = append(imports, Import{Path: p, Name: name, Line: f.Line(spec.Pos())})
	}
	return imports
}

// version is the last element of a path like math/rand/v2, which is not the package's name.
var version = regexp.MustCompile(`^v[0-9]+$`)

// Import is one import of a file, with the name that the file calls it by.
type Import struct {
	Path, Name string
	Line       int
}

// Own returns the path from the root of an import of this module.
func (i Import) Own() (string, bool) {
	return strings.CutPrefix(i.Path, "muster:")
}

// Line returns the line of a position in the file.
func (f *File) Line(pos token.Pos) int {
	return f.Fset.Position(pos).Line
}

// Load reads the tree under root. What .gitignore names and testdata folders are no part of it.
func Load(root string) (*Tree, error) {
	ignored, err := ignores(filepath.Join(root, ".gitignore"))
	if err != nil {
		return nil, err
	}
	tree := &Tree{}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || rel == "." {
			return err
		}
		rel = filepath.ToSlash(rel)
		if rel == ".git" || ignored(rel) || d.IsDir() && d.Name() == "testdata" {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.Contains(rel, "/") {
			tree.Entries = append(tree.Entries, rel)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		return tree.add(name, rel)
	})
	return tree, err
}

func (t *Tree) add(name, rel string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.Size() > maxText {
		return nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return nil
	}
	t.Texts = append(t.Texts, Text{rel, text})
	if path.Ext(rel) != ".go" {
		return nil
	}
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, rel, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("parse %s: %w", rel, err)
	}
	t.Files = append(t.Files, &File{
		Path:      rel,
		Package:   path.Dir(rel),
		Test:      strings.HasSuffix(rel, "_test.go"),
		Generated: ast.IsGenerated(parsed),
		Lines:     bytes.Count(text, []byte("\n")),
		AST:       parsed,
		Fset:      fset,
	})
	return nil
}

// ignores reads the two forms of pattern that the tree's .gitignore uses: /name/ for a folder of the root and *.suffix for a file anywhere.
func ignores(file string) (func(rel string) bool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var patterns []string
	rooted := regexp.MustCompile(`^/[^/*?\[]+/?$`)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		pattern := strings.TrimSpace(lines.Text())
		if pattern == "" || strings.HasPrefix(pattern, "#") {
			continue
		}
		if !rooted.MatchString(pattern) && !strings.HasPrefix(pattern, "*.") {
			return nil, fmt.Errorf(".gitignore: %q: only /name/ and *.suffix are understood here", pattern)
		}
		patterns = append(patterns, pattern)
	}
	return func(rel string) bool {
		for _, pattern := range patterns {
			if rooted.MatchString(pattern) && rel == strings.Trim(pattern, "/") {
				return true
			}
			if ok, _ := path.Match(pattern, path.Base(rel)); ok {
				return true
			}
		}
		return false
	}, nil
}
