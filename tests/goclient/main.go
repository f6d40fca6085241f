// Command goclient talks to a node as a program written for the reference does:
// through the reference's published Go module of the service hedgeproto.Hedge.
// Each line of standard input is a task in JSON, answered by one line:
//
//	{"call": "write", "name": "n", "count": 100, "size": 5000, "meta": {...}}
//	{"call": "read", "name": "n"}
//	{"call": "close", "name": "n", "meta": {...}}
//	{"call": "send", "messages": ["a", "b"]}
//	{"call": "broadcast", "messages": ["a", "b"]}
//
// Record i of a write has i modulo size bytes, each the low byte of i. The
// answer says how many records there were and the SHA-256 of all of them behind
// their lengths, or the replies, and the status.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	pb "github.com/flowerinthenight/hedge-proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const timeout = time.Minute

type task struct {
	Call, Name  string
	Count, Size int
	Meta        map[string]string
	Messages    []string
}

type answer struct {
	Status  string   `json:"status"`
	Text    string   `json:"text,omitempty"`
	Records int      `json:"records"`
	Sum     string   `json:"sum,omitempty"`
	Replies []string `json:"replies,omitempty"`
}

type summer struct {
	hash.Hash
	n int
}

func (s *summer) add(record []byte) {
	var length [4]byte

	binary.LittleEndian.PutUint32(length[:], uint32(len(record)))
	s.Write(length[:])
	s.Write(record)
	s.n++
}

func (s *summer) into(a *answer) {
	a.Records = s.n
	a.Sum = hex.EncodeToString(s.Hash.Sum(nil))
}

func record(i, size int) []byte {
	b := make([]byte, i%size)
	for j := range b {
		b[j] = byte(i)
	}
	return b
}

func (t *task) meta() map[string]string {
	m := map[string]string{"name": t.Name}
	for k, v := range t.Meta {
		m[k] = v
	}
	return m
}

// Every record with the meta, as the reference's writer sends them; then the
// end, and the node's answer to it.
func write(ctx context.Context, c pb.HedgeClient, t *task, a *answer) error {
	stream, err := c.SoSWrite(ctx)
	if err != nil {
		return err
	}
	sum := summer{Hash: sha256.New()}
	for i := 0; i < t.Count; i++ {
		data := record(i, t.Size)
		if stream.Send(&pb.Payload{Meta: t.meta(), Data: data}) != nil {
			break // Recv tells why.
		}
		sum.add(data)
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if err == io.EOF {
		sum.into(a)
		return nil
	}
	return err
}

// One request, and no end of sending: as the reference's reader does.
func read(ctx context.Context, c pb.HedgeClient, t *task, a *answer) error {
	stream, err := c.SoSRead(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.Payload{Meta: t.meta()}); err != nil {
		return err
	}
	sum := summer{Hash: sha256.New()}
	for {
		p, err := stream.Recv()
		if err == io.EOF {
			sum.into(a)
			return nil
		}
		if err != nil {
			return err
		}
		sum.add(p.Data)
	}
}

type conversation interface {
	Send(*pb.Payload) error
	Recv() (*pb.Payload, error)
	CloseSend() error
}

// Each message is answered before the next is sent.
func converse(s conversation, err error, t *task, a *answer) error {
	if err != nil {
		return err
	}
	for _, m := range t.Messages {
		if err := s.Send(&pb.Payload{Data: []byte(m)}); err != nil && err != io.EOF {
			return err
		}
		p, err := s.Recv()
		if err != nil {
			return err
		}
		a.Replies = append(a.Replies, string(p.Data))
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if _, err := s.Recv(); err != io.EOF {
		return fmt.Errorf("after the last answer: %v", err)
	}
	return nil
}

func do(c pb.HedgeClient, t *task, a *answer) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch t.Call {
	case "write":
		return write(ctx, c, t, a)
	case "read":
		return read(ctx, c, t, a)
	case "close":
		_, err := c.SoSClose(ctx, &pb.Payload{Meta: t.meta()})
		return err
	case "send":
		s, err := c.Send(ctx)
		return converse(s, err, t, a)
	case "broadcast":
		s, err := c.Broadcast(ctx)
		return converse(s, err, t, a)
	}
	return fmt.Errorf("there is no call %q", t.Call)
}

func run(address string) error {
	conn, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := pb.NewHedgeClient(conn)
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	out := json.NewEncoder(os.Stdout)
	for {
		var t task
		var a answer

		if err := in.Decode(&t); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		err := do(client, &t, &a)
		a.Status = status.Code(err).String()
		if err != nil {
			a.Text = status.Convert(err).Message()
		}
		if err := out.Encode(&a); err != nil {
			return err
		}
	}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: goclient HOST:PORT")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "goclient:", err)
		os.Exit(1)
	}
}
