// Command grpc asks a Forebay gateway over gRPC.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "forebay.dev/examples/grpc/forebayv1"
)

// The gateway says in each refusal whether and when to try again, which grpc-go obeys.
const serviceConfig = `{"methodConfig": [{
  "name": [{"service": "forebay.v1.InferenceService"}],
  "retryPolicy": {
    "maxAttempts": 4, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
  }
}]}`

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func request(model, text string) *pb.ChatCompletionRequest {
	return &pb.ChatCompletionRequest{
		Model:               model,
		Messages:            []*pb.ChatMessage{{Role: pb.Role_ROLE_USER, Content: proto.String(text)}},
		MaxCompletionTokens: proto.Int32(32),
	}
}

// ask gets an answer in one piece.
func ask(ctx context.Context, client pb.InferenceServiceClient, model string) error {
	var trailer metadata.MD
	answer, err := client.ChatCompletion(ctx, request(model, "hi"), grpc.Trailer(&trailer))
	if err != nil {
		return err
	}
	fmt.Println("answer:", answer.GetChoices()[0].GetMessage().GetContent())
	fmt.Println("tokens:", answer.GetUsage().GetTotalTokens())
	fmt.Println("requests left:", trailer.Get("x-ratelimit-remaining-requests"))
	return nil
}

// stream gets an answer token by token. Cancelling ctx stops the engine.
func stream(ctx context.Context, client pb.InferenceServiceClient, model string) error {
	call, err := client.StreamChatCompletion(ctx, request(model, "count to five"))
	if err != nil {
		return err
	}
	fmt.Print("stream: ")
	for {
		chunk, err := call.Recv()
		if errors.Is(err, io.EOF) {
			fmt.Println()
			return nil
		}
		if err != nil {
			return err
		}
		for _, choice := range chunk.GetChoices() {
			fmt.Print(choice.GetDelta().GetContent())
		}
	}
}

// explain shows what an error tells beside its text.
func explain(err error) {
	told := status.Convert(err)
	fmt.Println("error:", told.Code(), told.Message())
	for _, detail := range told.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Println("  reason:", detail.GetReason())
		case *errdetails.RetryInfo:
			fmt.Println("  retry after:", detail.GetRetryDelay().AsDuration())
		case *errdetails.BadRequest:
			fmt.Println("  field:", detail.GetFieldViolations()[0].GetField())
		case *errdetails.RequestInfo:
			fmt.Println("  request:", detail.GetRequestId())
		}
	}
}

func main() {
	model := env("FOREBAY_MODEL", "tiny")
	// For TLS: credentials.NewClientTLSFromFile("ca.pem", "").
	connection, err := grpc.NewClient(
		env("FOREBAY_TARGET", "127.0.0.1:50051"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	client := pb.NewInferenceServiceClient(connection)

	// The deadline is the time that the whole answer may take.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(
		ctx, "authorization", "Bearer "+os.Getenv("FOREBAY_API_KEY"))

	for _, step := range []func(context.Context, pb.InferenceServiceClient, string) error{ask, stream} {
		if err := step(ctx, client, model); err != nil {
			explain(err)
			os.Exit(1)
		}
	}
	if err := ask(ctx, client, "no-such-model"); err != nil {
		explain(err)
	}
}
