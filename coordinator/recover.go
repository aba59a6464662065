package coordinator

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// StaysDown says that an error of Run is none that another start could mend: somebody must look.
func StaysDown(err error) bool {
	return errors.Is(err, cluster.ErrRemoved) || errors.Is(err, cluster.ErrDamaged)
}

// OfflineOptions name a coordinator that does not run.
type OfflineOptions struct {
	// DataDir of the coordinator.
	DataDir string
	// UnlockKeyFile as for Options.
	UnlockKeyFile string
}

// Survey is what the data directory of a coordinator holds.
type Survey = cluster.Survey

// Inspect says what the data directory of a coordinator that does not run holds, after it has read all of it. It changes nothing.
func Inspect(o OfflineOptions) (Survey, error) {
	options, err := o.cluster()
	if err != nil {
		return Survey{}, err
	}
	return cluster.Inspect(options)
}

// RecoverOptions of a recovery from a lost quorum.
type RecoverOptions struct {
	OfflineOptions
	// OthersStopped is the operator's word that no other coordinator of the cluster runs, or ever will.
	OthersStopped bool
}

// Recovery is what Recover did.
type Recovery struct {
	Survey
	// Copy of the raft folder as it was.
	Copy string
	// Evicted coordinators, by their names: they are refused, should they ever start again.
	Evicted []string
}

// Recover makes this coordinator, which does not run, the only one of its cluster: every entry in its log counts as committed, and the other
// coordinators are evicted.
func Recover(o RecoverOptions) (Recovery, error) {
	if !o.OthersStopped {
		return Recovery{}, errors.New("give --i-have-stopped-all-others when that is true: a coordinator that still runs would go on as the same cluster")
	}
	options, err := o.cluster()
	if err != nil {
		return Recovery{}, err
	}
	fsm := state.New()
	options.FSM = fsm
	recovery := Recovery{}
	recovery.Survey, recovery.Copy, err = cluster.Recover(options, func() ([]*raftv1.Command, error) {
		var commands []*raftv1.Command
		for _, known := range fsm.View().Identities() {
			switch {
			case known.GetRole() != accessv1.Role_ROLE_COORDINATOR:
				continue
			case known.GetName() == options.ID && known.GetEvicted():
				return nil, fmt.Errorf("%s was removed from the cluster: nobody would accept its certificate; recover another coordinator", options.ID)
			case known.GetName() == options.ID || known.GetEvicted():
				continue
			}
			recovery.Evicted = append(recovery.Evicted, known.GetName())
			commands = append(commands, &raftv1.Command{Actor: "muster-coordinator recover", Op: &raftv1.Command_Evict{Evict: &raftv1.Evict{
				Identity: known.GetId(), Reason: "the cluster was recovered without it",
			}}})
		}
		return commands, nil
	})
	return recovery, err
}

// cluster returns the options of the coordinator's part in the cluster.
func (o OfflineOptions) cluster() (cluster.Options, error) {
	settings, err := loadSettings(o.DataDir)
	if err != nil {
		return cluster.Options{}, err
	}
	keyFile := o.UnlockKeyFile
	if keyFile == "" {
		keyFile = filepath.Join(o.DataDir, unlockKeyFile)
	}
	key, err := loadUnlockKey(keyFile)
	if err != nil {
		return cluster.Options{}, err
	}
	return cluster.Options{
		ID: settings.Name, Address: settings.Advertise, ClusterID: settings.ClusterID, DataDir: o.DataDir, SealKey: key,
		Logger: slog.New(slog.DiscardHandler),
	}, nil
}
