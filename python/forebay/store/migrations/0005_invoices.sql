-- How an account is billed. Without a row: US dollars, UTC, no tax, 30 days.
CREATE TABLE account_billing (
    account      text PRIMARY KEY REFERENCES accounts (id),
    currency     char(3) NOT NULL,
    time_zone    text NOT NULL,
    -- [{"name", "rate", "on"}]: rate in percent, as text.
    taxes        jsonb NOT NULL,
    tax_id       text,
    legal_name   text,
    address      text[] NOT NULL,
    email        text,
    payment_days integer NOT NULL CHECK (payment_days BETWEEN 0 AND 365),
    updated_at   timestamptz NOT NULL DEFAULT now()
);

-- Who writes the invoices.
CREATE TABLE seller (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    name       text NOT NULL,
    address    text[] NOT NULL,
    tax_id     text,
    email      text,
    bank       text[] NOT NULL,
    footer     text,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- What was agreed with an account beyond prices. Days are the account's; ends is the first day on
-- which the term holds no more.
CREATE TABLE terms (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account     text NOT NULL REFERENCES accounts (id),
    kind        text NOT NULL CHECK (kind IN ('free_tokens', 'free_money', 'discount', 'fee')),
    description text NOT NULL,
    -- NULL: all of them.
    model       text CHECK (model <> ''),
    token_kind  text CHECK (token_kind IN
        ('input', 'cached', 'cache_write', 'output', 'reasoning')),
    -- A month.
    tokens      bigint CHECK (tokens > 0),
    amount      numeric(18, 6) CHECK (amount > 0),
    percent     numeric(7, 4) CHECK (percent > 0 AND percent <= 100),
    -- A discount is on what a month's usage is above this.
    above       numeric(18, 6) CHECK (above >= 0),
    starts      date NOT NULL,
    ends        date CHECK (ends > starts),
    created_at  timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'free_tokens') = (tokens IS NOT NULL)),
    CHECK ((kind IN ('free_money', 'fee')) = (amount IS NOT NULL)),
    CHECK ((kind = 'discount') = (percent IS NOT NULL)),
    CHECK (above IS NULL OR kind = 'discount'),
    CHECK (model IS NULL OR kind IN ('free_tokens', 'discount')),
    CHECK (token_kind IS NULL OR kind = 'free_tokens')
);

CREATE INDEX terms_by_account ON terms (account, starts);

-- The serial number that comes next: taken by an update in the transaction that stores the
-- document, so that none is ever missing.
CREATE TABLE invoice_series (
    series text PRIMARY KEY,
    prefix text NOT NULL UNIQUE,
    next   bigint NOT NULL DEFAULT 1
);
INSERT INTO invoice_series (series, prefix) VALUES ('invoice', 'INV-'), ('credit_note', 'CN-');

CREATE SEQUENCE invoice_ids;

-- Finalised documents. One that refers to another is a credit note to it.
CREATE TABLE invoices (
    id           bigint PRIMARY KEY,
    series       text NOT NULL REFERENCES invoice_series (series),
    serial       bigint NOT NULL,
    number       text NOT NULL UNIQUE,
    account      text NOT NULL REFERENCES accounts (id),
    -- YYYY-MM, in the account's time zone.
    month        char(7) NOT NULL,
    period_start timestamptz NOT NULL,
    period_end   timestamptz NOT NULL,
    currency     char(3) NOT NULL,
    net          numeric(38, 4) NOT NULL,
    tax          numeric(38, 4) NOT NULL,
    total        numeric(38, 4) NOT NULL,
    -- Usage is in it up to this ingest number.
    watermark    bigint NOT NULL,
    refers       bigint REFERENCES invoices (id),
    issued_on    date NOT NULL,
    finalized_at timestamptz NOT NULL DEFAULT now(),
    -- The document as JSON, to the byte.
    document     text NOT NULL,
    UNIQUE (series, serial),
    CHECK (refers IS NULL OR series = 'credit_note')
);

CREATE UNIQUE INDEX invoices_by_month ON invoices (account, month) WHERE refers IS NULL;
CREATE INDEX invoices_by_reference ON invoices (refers) WHERE refers IS NOT NULL;

CREATE TABLE invoice_lines (
    invoice      bigint NOT NULL REFERENCES invoices (id) DEFERRABLE INITIALLY DEFERRED,
    position     integer NOT NULL CHECK (position > 0),
    kind         text NOT NULL CHECK (kind IN ('usage', 'late', 'adjustment', 'free_tokens',
        'free_money', 'discount', 'fee', 'credit')),
    month        char(7) NOT NULL,
    description  text NOT NULL,
    model        text,
    token_kind   text,
    price_id     bigint REFERENCES prices (id),
    old_price_id bigint REFERENCES prices (id),
    quantity     numeric(38, 6),
    unit_price   numeric(20, 6),
    per          integer,
    amount       numeric(38, 4) NOT NULL,
    term         bigint REFERENCES terms (id),
    -- The line of the other document that is credited.
    credits      integer,
    PRIMARY KEY (invoice, position)
);

-- Usage that is rated anew: so much of one kind of token, of one month, goes from one price row to
-- another. origin: the row by which the events themselves were rated; null: none was there.
CREATE TABLE adjustments (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account    text NOT NULL REFERENCES accounts (id),
    month      char(7) NOT NULL,
    model      text NOT NULL,
    origin     bigint REFERENCES prices (id),
    old_price  bigint REFERENCES prices (id),
    new_price  bigint NOT NULL REFERENCES prices (id),
    token_kind text NOT NULL,
    quantity   numeric(38, 6) NOT NULL CHECK (quantity > 0),
    currency   char(3) NOT NULL,
    -- What that changes, exactly.
    amount     numeric(38, 12) NOT NULL,
    -- Events up to this ingest number were looked at.
    watermark  bigint NOT NULL,
    -- The document that took it up; null: waits for the next.
    invoice    bigint REFERENCES invoices (id),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX adjustments_by_month ON adjustments (account, month);
CREATE INDEX adjustments_waiting ON adjustments (account) WHERE invoice IS NULL;

CREATE FUNCTION invoices_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a finalised invoice cannot be changed' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER invoices_immutable BEFORE UPDATE OR DELETE ON invoices
    FOR EACH ROW EXECUTE FUNCTION invoices_immutable();
CREATE TRIGGER invoices_kept BEFORE TRUNCATE ON invoices
    EXECUTE FUNCTION invoices_immutable();
CREATE TRIGGER invoice_lines_immutable BEFORE UPDATE OR DELETE ON invoice_lines
    FOR EACH ROW EXECUTE FUNCTION invoices_immutable();
CREATE TRIGGER invoice_lines_kept BEFORE TRUNCATE ON invoice_lines
    EXECUTE FUNCTION invoices_immutable();

-- Lines are stored before their invoice, which closes it.
CREATE FUNCTION invoice_lines_closed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM invoices WHERE id = NEW.invoice) THEN
        RAISE EXCEPTION 'a finalised invoice cannot be changed'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER invoice_lines_closed BEFORE INSERT ON invoice_lines
    FOR EACH ROW EXECUTE FUNCTION invoice_lines_closed();

-- An adjustment is taken up once, and else stays as it is.
CREATE FUNCTION adjustments_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.invoice IS NULL AND NEW.invoice IS NOT NULL
        AND (to_jsonb(OLD) - 'invoice') = (to_jsonb(NEW) - 'invoice') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'an adjustment cannot be changed' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER adjustments_once BEFORE UPDATE OR DELETE ON adjustments
    FOR EACH ROW EXECUTE FUNCTION adjustments_once();
CREATE TRIGGER adjustments_kept BEFORE TRUNCATE ON adjustments
    EXECUTE FUNCTION adjustments_once();

-- Numbers go up by one.
CREATE FUNCTION invoice_series_gapless() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.series <> OLD.series OR NEW.prefix <> OLD.prefix
        OR NEW.next <> OLD.next + 1 THEN
        RAISE EXCEPTION 'numbers of invoices go up by one'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER invoice_series_gapless BEFORE UPDATE OR DELETE ON invoice_series
    FOR EACH ROW EXECUTE FUNCTION invoice_series_gapless();
