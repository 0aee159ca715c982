-- What waltrail's role needs when it sets everything up itself (setup = "auto"); see docs/start/self-hosted.md.
-- REPLICATION for the slot; the tables' owner, because only an owner can publish a table; CREATE on the
-- database for the publication and the schema waltrail.
CREATE ROLE waltrail LOGIN REPLICATION PASSWORD 'waltrail';
GRANT app TO waltrail;
DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO waltrail', current_database()); END $$;
-- For the history tables that it creates itself.
GRANT CREATE ON SCHEMA public TO waltrail;
