package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// The file is fileMagic and then frames: frameMagic, the length of the payload and its CRC-32C (both little endian), the payload.
// The payload is an agentv1.LedgerFrame. The magic words let a reader find frames behind a damaged one.
const (
	fileMagic   = "MUSTERL1"
	frameMagic  = "MLF1"
	frameHeader = len(frameMagic) + 8
	// maxFrame bounds the payload: a length above it is damage.
	maxFrame = 16 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errDamaged = errors.New("damaged frame")
)

// appendFrame appends one frame with the records to b.
func appendFrame(b []byte, records []*agentv1.LedgerRecord) ([]byte, error) {
	payload, err := proto.Marshal(&agentv1.LedgerFrame{Records: records})
	if err != nil {
		return nil, fmt.Errorf("marshal %d ledger records: %w", len(records), err)
	}
	if len(payload) > maxFrame {
		return nil, fmt.Errorf("%d ledger records have %d bytes, more than a frame's %d", len(records), len(payload), maxFrame)
	}
	b = append(b, frameMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...), nil
}

// parseFrame returns the records of the frame at the start of b, and the frame's size.
func parseFrame(b []byte) ([]*agentv1.LedgerRecord, int, error) {
	if len(b) < frameHeader || string(b[:len(frameMagic)]) != frameMagic {
		return nil, 0, errDamaged
	}
	size := int(binary.LittleEndian.Uint32(b[len(frameMagic):]))
	sum := binary.LittleEndian.Uint32(b[len(frameMagic)+4:])
	if size > maxFrame || size > len(b)-frameHeader {
		return nil, 0, errDamaged
	}
	payload := b[frameHeader : frameHeader+size]
	if crc32.Checksum(payload, castagnoli) != sum {
		return nil, 0, errDamaged
	}
	var frame agentv1.LedgerFrame
	if err := proto.Unmarshal(payload, &frame); err != nil {
		return nil, 0, fmt.Errorf("unmarshal a frame whose checksum is right: %w", err)
	}
	return frame.GetRecords(), frameHeader + size, nil
}

// parseFile returns the records of a ledger file and the length of its intact part. The file may end in one damaged frame, which a crash
// leaves behind: at most one is ever written without being synced. A damaged frame in front of an intact one is an error.
func parseFile(b []byte) (records []*agentv1.LedgerRecord, intact int, err error) {
	if len(b) < len(fileMagic) || string(b[:len(fileMagic)]) != fileMagic {
		return nil, 0, fmt.Errorf("the file does not start with %q at offset 0: it is not a ledger, or its start is damaged", fileMagic)
	}
	offset := len(fileMagic)
	for offset < len(b) {
		found, size, err := parseFrame(b[offset:])
		if errors.Is(err, errDamaged) {
			if next := nextFrame(b, offset+1); next >= 0 {
				return nil, 0, fmt.Errorf("the frame at offset %d is damaged, and an intact one follows at offset %d", offset, next)
			}
			return records, offset, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("the frame at offset %d: %w", offset, err)
		}
		records = append(records, found...)
		offset += size
	}
	return records, offset, nil
}

// nextFrame returns the offset of the first intact frame at or behind from, and -1 if there is none.
func nextFrame(b []byte, from int) int {
	for from < len(b) {
		i := bytes.Index(b[from:], []byte(frameMagic))
		if i < 0 {
			return -1
		}
		if _, _, err := parseFrame(b[from+i:]); err == nil {
			return from + i
		}
		from += i + 1
	}
	return -1
}
