package stack_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func cordoned(h *coordinatorv1.Host) { h.Cordoned, h.CordonReason = true, "disk" }

func TestPlaceLeavesCordonedHostsAlone(t *testing.T) {
	hosts := []*coordinatorv1.Host{host("h1"), host("h2", cordoned), host("h3")}
	web, data := svc("web", 3), svc("db", 1, pinned("volume data"))
	for _, tt := range []struct {
		name string
		req  stack.PlaceRequest
		want string
	}{
		{"new instances", stack.PlaceRequest{Hosts: hosts, Services: []*coordinatorv1.Service{svc("web", 4)}},
			"web.1@h1 r7, web.2@h3 r7, web.3@h1 r7, web.4@h3 r7"},
		{"what is there stays", stack.PlaceRequest{Hosts: hosts, Services: []*coordinatorv1.Service{web}, Before: []*coordinatorv1.Service{web},
			Current: []*coordinatorv1.Assignment{at("web", 1, "h1", 3), at("web", 2, "h2", 3)}},
			"web.1@h1 r3, web.2@h2 r3, web.3@h3 r7"},
		{"a new container goes elsewhere", stack.PlaceRequest{Hosts: hosts, Services: []*coordinatorv1.Service{svc("web", 2, image("web:2"))}, Before: []*coordinatorv1.Service{web},
			Current: []*coordinatorv1.Assignment{at("web", 1, "h1", 3), at("web", 2, "h2", 3)}},
			"web.1@h1 r7, web.2@h3 r7"},
		{"data stays with its host", stack.PlaceRequest{Hosts: hosts, Services: []*coordinatorv1.Service{svc("db", 1, pinned("volume data"), image("db:2"))}, Before: []*coordinatorv1.Service{data},
			Current: []*coordinatorv1.Assignment{at("db", 1, "h2", 3)}},
			"db.1@h2 r7"},
		{"data starts elsewhere", stack.PlaceRequest{Hosts: hosts, Services: []*coordinatorv1.Service{data}},
			"db.1@h1 r7"},
		{"global services stay and do not come", stack.PlaceRequest{Hosts: []*coordinatorv1.Host{host("h1", cordoned), host("h2", cordoned), host("h3")},
			Services: []*coordinatorv1.Service{svc("log", 0, global, image("log:2"))}, Before: []*coordinatorv1.Service{svc("log", 0, global)},
			Current: []*coordinatorv1.Assignment{at("log", 1, "h1", 3)}},
			"log.1@h1 r7, log.2@h3 r7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Stack, tt.req.Release = "app", 7
			got, err := stack.Place(tt.req)
			if err != nil || short(got) != tt.want {
				t.Errorf("got %s, %v, want %s", short(got), err, tt.want)
			}
		})
	}
}

func TestPlaceNamesCordonedHosts(t *testing.T) {
	for _, tt := range []struct {
		name    string
		service *coordinatorv1.Service
		others  []*coordinatorv1.Host
		reason  string
	}{
		{"no other", svc("web", 1), nil, "PLACEMENT"},
		{"the only one that matches", svc("web", 1, on("node.hostname==h2")), []*coordinatorv1.Host{host("h1")}, "PLACEMENT"},
		{"the others are full", svc("web", 2, memory(3*gib)), []*coordinatorv1.Host{host("h1")}, "NO_CAPACITY"},
		{"the others' port is taken", svc("web", 2, port(80, 80)), []*coordinatorv1.Host{host("h1")}, "PORT_TAKEN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := stack.Place(stack.PlaceRequest{
				Stack: "app", Release: 7, Hosts: append(tt.others, host("h2", cordoned)), Services: []*coordinatorv1.Service{tt.service},
			})
			if rpcerr.Reason(err) != tt.reason || !strings.Contains(err.Error(), "h2 is cordoned: disk (`musterctl host uncordon h2` opens it)") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestPlaceDrain(t *testing.T) {
	hosts := []*coordinatorv1.Host{host("h1"), host("h2"), host("h3")}
	web := svc("web", 3)
	req := stack.PlaceRequest{
		Stack: "app", Release: 7, Hosts: hosts, Services: []*coordinatorv1.Service{web}, Before: []*coordinatorv1.Service{web}, Drain: "h2",
		Current: []*coordinatorv1.Assignment{at("web", 1, "h1", 3), at("web", 2, "h2", 3), at("web", 3, "h3", 3)},
	}
	if got, err := stack.Place(req); err != nil || short(got) != "web.1@h1 r3, web.2@h1 r7, web.3@h3 r3" {
		t.Errorf("got %s, %v", short(got), err)
	}
	hosts[2] = host("h3", down)
	if _, err := stack.Place(req); rpcerr.Reason(err) != "HOST_DOWN" || !strings.Contains(err.Error(), "musterctl host drain h3 --lost") {
		t.Errorf("with another host down: %v", err)
	}
	req.DownStays = true
	if got, err := stack.Place(req); err != nil || short(got) != "web.1@h1 r3, web.2@h1 r7, web.3@h3 r3" {
		t.Errorf("with another host down that is left alone: %s, %v", short(got), err)
	}
	req.Services = []*coordinatorv1.Service{svc("web", 3, image("web:2"))}
	if _, err := stack.Place(req); rpcerr.Reason(err) != "HOST_DOWN" {
		t.Errorf("a container on a host that is down was replaced: %v", err)
	}
}

func TestPlaceDrainListsAllThatIsStuck(t *testing.T) {
	services := []*coordinatorv1.Service{svc("big", 1, memory(3*gib)), svc("db", 1, pinned("volume data")), svc("edge", 1, port(80, 80)), svc("here", 1, on("node.hostname==h2")), svc("web", 1)}
	var current []*coordinatorv1.Assignment
	for _, s := range services {
		current = append(current, at(s.GetName(), 1, "h2", 3))
	}
	current[2] = at("edge", 1, "h2", 3, 80, 80)
	other := &coordinatorv1.Release{Stack: "zoo", Services: []*coordinatorv1.Service{svc("lion", 1, memory(2*gib), port(80, 80))}, Assignments: []*coordinatorv1.Assignment{at("lion", 1, "h1", 1, 80, 80)}}
	_, err := stack.Place(stack.PlaceRequest{
		Stack: "app", Release: 7, Hosts: []*coordinatorv1.Host{host("h1"), host("h2")}, Services: services, Before: services, Current: current, Others: stack.Uses(other), Drain: "h2",
	})
	var stuck *stack.StuckError
	if !errors.As(err, &stuck) {
		t.Fatalf("error %v", err)
	}
	why := map[string]string{"app.big.1": "2 GiB of 4 GiB memory free", "app.db.1": "volume data", "app.edge.1": "port 80", "app.here.1": "h2 is being drained"}
	for _, s := range stuck.Stuck {
		if want := why[s.Instance]; want == "" || !strings.Contains(s.Why, want) {
			t.Errorf("%s: %s, want %q", s.Instance, s.Why, want)
		}
		delete(why, s.Instance)
	}
	if len(why) > 0 {
		t.Errorf("not named: %v", why)
	}
}

func TestHostLostExtension(t *testing.T) {
	load := func(lines string) (*coordinatorv1.Service, error) {
		model, err := stack.Load(context.Background(), oneFile("services:\n  web:\n    image: a:1\n    x-muster: "+lines+"\n"))
		if err != nil {
			return nil, err
		}
		return model.Services[0], nil
	}
	s, err := load("{on_host_lost: replace, replace_after: 90s}")
	if err != nil || s.GetOnHostLost() != stack.OnHostLostReplace || s.GetReplaceAfter().AsDuration() != 90*time.Second {
		t.Errorf("got %v, %v", s, err)
	}
	if s, err = load("{on_host_lost: ask}"); err != nil || s.GetOnHostLost() != stack.OnHostLostAsk {
		t.Errorf("got %v, %v", s, err)
	}
	for lines, want := range map[string]string{
		"{on_host_lost: panic}":                        "there are ask and replace",
		"{on_host_lost: ask, replace_after: 1m}":       "no meaning without on_host_lost: replace",
		"{on_host_lost: replace, replace_after: soon}": "not a duration",
	} {
		if _, err := load(lines); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one that says %q", lines, err, want)
		}
	}
}

func TestPlaceTakesNothingAwayFromAHostThatIsDown(t *testing.T) {
	web := svc("web", 2)
	req := stack.PlaceRequest{
		Stack: "app", Release: 7, Hosts: []*coordinatorv1.Host{host("h1"), host("h2", down)}, Services: []*coordinatorv1.Service{svc("web", 1)}, Before: []*coordinatorv1.Service{web},
		Current: []*coordinatorv1.Assignment{at("web", 1, "h1", 3), at("web", 2, "h2", 3)},
	}
	for _, services := range [][]*coordinatorv1.Service{req.Services, {svc("api", 1)}} {
		req.Services = services
		if _, err := stack.Place(req); rpcerr.Reason(err) != "HOST_DOWN" || !strings.Contains(err.Error(), "musterctl host drain h2 --lost") {
			t.Errorf("error %v", err)
		}
	}
}
