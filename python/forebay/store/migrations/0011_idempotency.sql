-- Requests that carry an Idempotency-Key: who works on one, and what came of it.
CREATE TABLE idempotency_keys (
    account     text NOT NULL,
    -- As the client sent it: 1 to 255 printable ASCII characters.
    key         text COLLATE "C" NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    -- SHA-256 of the way in and the body.
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    -- Whoever works on it, or did.
    owner       uuid NOT NULL,
    -- While nothing came of it: from then on another may take it over.
    lease_until timestamptz NOT NULL,
    created_at  timestamptz NOT NULL,
    -- From then on it is as if it had never been.
    expires_at  timestamptz NOT NULL,
    outcome     text CHECK (outcome IN ('answered', 'too_large')),
    -- Status, headers, whether it was streamed, and the id of the request that it answered.
    head        json,
    -- The key that opens the answer: 12 bytes of nonce, AES-256-GCM's ciphertext, and its tag of
    -- 16; bound to owner and 2. Null: the answer is as it was.
    enc_key     text,
    answer      bytea,
    PRIMARY KEY (account, key),
    CHECK ((outcome = 'answered') IS NOT TRUE OR (head IS NOT NULL AND answer IS NOT NULL))
);

CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);
-- What is sealed does not compress.
ALTER TABLE idempotency_keys ALTER COLUMN answer SET STORAGE EXTERNAL;
-- Leases are renewed in place.
ALTER TABLE idempotency_keys SET (fillfactor = 80);
