package client_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

func TestARolloutThatIsNotDoneInTimeIsADeadlineAndAnInterruptIsNone(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"rollout":{"state":"`+api.RolloutRolling+`"}}`)
		select {
		case asked <- struct{}{}:
		default:
		}
	}))
	defer s.Close()
	c, err := client.New(client.Config{Gateway: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	late, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.AwaitRollout(late, "hello.openfaas-fn"); api.CodeOf(err) != api.CodeDeadline {
		t.Errorf("got %v", err)
	}
	<-asked
	stopped, stop := context.WithCancel(t.Context())
	go func() { <-asked; stop() }()
	if _, err := c.AwaitRollout(stopped, "hello.openfaas-fn"); err == nil || api.CodeOf(err) == api.CodeDeadline {
		t.Errorf("interrupted: %v", err)
	}
}
