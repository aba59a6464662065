package stack_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// fixture is the compose project of the operated stack, in the shape that it has in production.
const fixture = "testdata/spheroseg"

// projectDirectory is where it lies on the hosts.
const projectDirectory = "/srv/spheroseg"

// production are the compose files as compose gets them.
var production = []string{"docker-compose.yml", "docker-compose.prod.yml", "monitoring/docker-compose.monitoring.yml"}

// managed adds what Muster needs to know.
var managed = append(production[:3:3], "docker-compose.muster.yml")

// fixtureSource is what a client sends for the fixture.
func fixtureSource(t *testing.T, composeFiles ...string) *coordinatorv1.StackSource {
	t.Helper()
	src := &coordinatorv1.StackSource{ComposeFiles: composeFiles, ProjectDirectory: projectDirectory}
	err := filepath.WalkDir(fixture, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(name, ".json") {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(fixture, name)
		if err != nil {
			return err
		}
		src.Files = append(src.Files, &coordinatorv1.StackFile{Path: filepath.ToSlash(rel), Content: content})
		return nil
	})
	if err != nil {
		t.Fatalf("read the fixture: %v", err)
	}
	return src
}

// oneFile is a stack of a single compose file.
func oneFile(content string) *coordinatorv1.StackSource {
	return &coordinatorv1.StackSource{
		Name:             "demo",
		ComposeFiles:     []string{"compose.yaml"},
		Files:            []*coordinatorv1.StackFile{{Path: "compose.yaml", Content: []byte(content)}},
		ProjectDirectory: "/srv/demo",
	}
}

// files is a stack of several files; the first is its compose file.
func files(nameAndContent ...string) *coordinatorv1.StackSource {
	src := oneFile("")
	src.Files = nil
	src.ComposeFiles = nameAndContent[:1]
	for i := 0; i+1 < len(nameAndContent); i += 2 {
		src.Files = append(src.Files, &coordinatorv1.StackFile{Path: nameAndContent[i], Content: []byte(nameAndContent[i+1])})
	}
	return src
}
