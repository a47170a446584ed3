defmodule Beamr.RealGuests.SQLiteTest do
  # SQLite as a supervised database: examples/sqlite.ex.
  use Beamr.Case, async: true

  @moduletag :real_guests
  # A server that a trap stops says so.
  @moduletag capture_log: true
  @moduletag timeout: 180_000

  @megabyte 1024 * 1024

  setup_all do
    {:ok, compiled: Beamr.RealGuest.module!("sqlite")}
  end

  defp start(module, opts \\ []) do
    start_supervised!({SQLite, [module: module] ++ opts}, id: make_ref())
  end

  # The database under its name, once its supervisor has started it again.
  defp await_other_than(pid, name) do
    eventually(fn -> Process.whereis(name) not in [nil, pid] end)
    Process.whereis(name)
  end

  describe "a database in memory" do
    setup %{compiled: module} do
      {:ok, db: start(module)}
    end

    test "a table is created, filled and read", %{db: db} do
      assert {:ok, []} = SQLite.query(db, "create table note (id integer primary key, text)")
      assert {:ok, []} = SQLite.query(db, "insert into note (text) values (?)", ["first"])
      assert {:ok, []} = SQLite.query(db, "insert into note (text) values (?)", ["zweite, ö"])

      assert SQLite.query(db, "select id, text from note order by id") ==
               {:ok, [[1, "first"], [2, "zweite, ö"]]}

      assert SQLite.query(db, "select text from note where id = ?", [2]) ==
               {:ok, [["zweite, ö"]]}
    end

    test "values of all types come back as they went in", %{db: db} do
      bytes = <<0, 255, 1>>
      values = [nil, 0, -1, 2 ** 63 - 1, -(2 ** 63), 1.5, "", "a\0b", "🐟", {:blob, bytes}]
      marks = Enum.map_join(values, ", ", fn _ -> "?" end)

      assert SQLite.query(db, "select " <> marks, values) ==
               {:ok, [List.replace_at(values, -1, bytes)]}

      assert SQLite.query(db, "select typeof(?), typeof(?)", ["x", {:blob, "x"}]) ==
               {:ok, [["text", "blob"]]}
    end

    test "what SQL has against a statement is data", %{db: db} do
      assert {:error, %SQLite.Error{code: 1, message: "no such table: missing"}} =
               SQLite.query(db, "select * from missing")

      assert {:error, %SQLite.Error{code: 1, message: message}} = SQLite.query(db, "selct 1")
      assert message =~ "syntax error"

      assert {:error, %SQLite.Error{code: 1, message: "more than one statement"}} =
               SQLite.query(db, "select 1; drop table note")

      assert {:error, %SQLite.Error{code: 25}} = SQLite.query(db, "select ?, ?", [1])
      assert {:ok, []} = SQLite.query(db, "create table t (x unique not null check (x > 0))")
      assert {:ok, []} = SQLite.query(db, "insert into t values (1)")

      for {code, value} <- [{2067, 1}, {1299, nil}, {275, -1}] do
        assert {:error, %SQLite.Error{code: ^code, message: message}} =
                 SQLite.query(db, "insert into t values (?)", [value])

        assert message =~ "constraint failed"
      end

      assert SQLite.query(db, "select * from t") == {:ok, [[1]]}
      assert SQLite.query(db, "-- nothing") == {:ok, []}
    end

    test "statements come together, or not at all", %{db: db} do
      assert {:ok, []} = SQLite.query(db, "create table t (x unique)")
      insert = "insert into t values (?)"
      assert :ok = SQLite.query_all(db, insert, [[1], [2]])
      assert {:error, %SQLite.Error{}} = SQLite.query_all(db, insert, [[3], [4], [1]])
      assert SQLite.query(db, "select sum(x) from t") == {:ok, [[3]]}
    end

    test "nothing stays behind in the guest", %{db: db} do
      for _ <- 1..20 do
        SQLite.query(db, "select ?, ?", ["text", {:blob, "blob"}])
        SQLite.query(db, "select ?", [])
        SQLite.query(db, "nonsense")
      end

      assert Beamr.IO.held(db) == {:ok, []}
    end

    test "there are no files where no directory was granted", %{db: db} do
      for path <- ["/etc/passwd", "mix.exs", "/data/x.db"] do
        assert {:error, %SQLite.Error{code: code, message: message}} =
                 SQLite.query(db, "attach database '#{path}' as other")

        # SQLITE_CANTOPEN, and its extended forms.
        assert Bitwise.band(code, 0xFF) == 14
        assert message =~ "unable to open"
      end
    end

    test "many clients are served one after the other", %{db: db} do
      assert {:ok, []} = SQLite.query(db, "create table t (x)")

      1..200
      |> Task.async_stream(&SQLite.query(db, "insert into t values (?)", [&1]))
      |> Enum.each(&assert {:ok, {:ok, []}} = &1)

      assert SQLite.query(db, "select count(*), sum(x) from t") == {:ok, [[200, 20_100]]}
    end
  end

  test "100,000 rows are inserted and summed in a supervised server, which a trap restarts",
       %{compiled: module} do
    db = start(module, name: __MODULE__.Big)
    create = "create table t (id integer primary key, x integer, name text)"
    insert = "insert into t (x, name) values (?, ?)"
    rows = for n <- 1..100_000, do: [n, "row #{n}"]

    assert {:ok, []} = SQLite.query(db, create)
    assert :ok = SQLite.query_all(db, insert, rows, timeout: 120_000)

    assert SQLite.query(db, "select count(*), sum(x), sum(length(name)) from t", [],
             timeout: 60_000
           ) ==
             {:ok, [[100_000, 5_000_050_000, Enum.sum(for [_, s] <- rows, do: byte_size(s))]]}

    # There is no statement where this one is said to be.
    assert {:error, %Beamr.Trap{reason: :memory_out_of_bounds}} =
             Beamr.call(db, "sqlite3_step", [-64])

    assert await_other_than(db, __MODULE__.Big) != db
    assert {:ok, []} = SQLite.query(__MODULE__.Big, create)
    assert :ok = SQLite.query_all(__MODULE__.Big, insert, Enum.take(rows, 10))
    assert SQLite.query(__MODULE__.Big, "select sum(x) from t") == {:ok, [[55]]}
  end

  test "a query without end is ended, and the database is started afresh", %{compiled: module} do
    db = start(module, name: __MODULE__.Endless)

    endless =
      "with recursive n(x) as (select 1 union all select x + 1 from n) select sum(x) from n"

    assert {:error, %Beamr.CallError{reason: :timeout}} =
             SQLite.query(db, endless, [], timeout: 200)

    await_other_than(db, __MODULE__.Endless)
    assert SQLite.query(__MODULE__.Endless, "select 1") == {:ok, [[1]]}
  end

  test "a query that wants more memory than there may be is told so", %{compiled: module} do
    db = start(module, max_memory: 8 * @megabyte)

    assert {:error, %SQLite.Error{code: 7, message: "out of memory"}} =
             SQLite.query(db, "select length(zeroblob(?) || 'x')", [64 * @megabyte])

    assert SQLite.query(db, "select 1") == {:ok, [[1]]}
  end

  describe "a database in a file" do
    @describetag :tmp_dir

    defp file(module, dir, name) do
      start(module, dir: dir, path: "/data/test.db", name: name)
    end

    test "outlives its process", %{compiled: module, tmp_dir: dir} do
      name = __MODULE__.File
      db = file(module, dir, name)
      assert {:ok, []} = SQLite.query(db, "create table t (x)")
      assert :ok = SQLite.query_all(db, "insert into t values (?)", for(n <- 1..1000, do: [n]))
      assert File.stat!(Path.join(dir, "test.db")).size > 0

      kill(db)
      await_other_than(db, name)
      assert SQLite.query(name, "select sum(x) from t") == {:ok, [[500_500]]}
      assert SQLite.query(name, "pragma integrity_check") == {:ok, [["ok"]]}
    end

    test "a transaction that a trap cuts off is undone", %{compiled: module, tmp_dir: dir} do
      name = __MODULE__.CutOff
      db = file(module, dir, name)
      assert {:ok, []} = SQLite.query(db, "create table t (x)")
      assert {:ok, []} = SQLite.query(db, "insert into t values (1)")

      # A cache this small has the transaction write to the file before its end.
      assert {:ok, []} = SQLite.query(db, "pragma cache_size = 2")
      assert {:ok, []} = SQLite.query(db, "begin")

      many =
        "insert into t with recursive n(x) as (select 1 union all select x + 1 from n limit 9999)" <>
          " select randomblob(100) from n"

      assert {:ok, []} = SQLite.query(db, many, [], timeout: 60_000)
      assert File.exists?(Path.join(dir, "test.db-journal"))
      assert File.stat!(Path.join(dir, "test.db")).size > 500_000
      assert {:error, %Beamr.Trap{}} = Beamr.call(db, "sqlite3_step", [-64])

      await_other_than(db, name)
      assert SQLite.query(name, "select x from t") == {:ok, [[1]]}
      assert SQLite.query(name, "pragma integrity_check") == {:ok, [["ok"]]}
    end

    test "is a file like any other", %{compiled: module, tmp_dir: dir} do
      db = file(module, dir, nil)
      assert {:ok, []} = SQLite.query(db, "create table t (x)")
      assert {:ok, []} = SQLite.query(db, "insert into t values ('seen')")
      assert "SQLite format 3\0" <> _rest = File.read!(Path.join(dir, "test.db"))

      assert {:error, %SQLite.Error{}} = SQLite.query(db, "attach '/data/../mix.exs' as other")

      if program = System.find_executable("sqlite3") do
        assert {"seen\n", 0} = System.cmd(program, [Path.join(dir, "test.db"), "select x from t"])
      end
    end

    test "one that cannot be opened stops its server", %{compiled: module, tmp_dir: dir} do
      Process.flag(:trap_exit, true)
      {:ok, db} = SQLite.start_link(module: module, dir: dir, path: "/elsewhere/test.db")
      assert_receive {:EXIT, ^db, {:shutdown, %SQLite.Error{code: 14}}}, 10_000
    end
  end
end
