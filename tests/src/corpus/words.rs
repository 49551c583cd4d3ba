//! Words of prose, the most frequent ones first.

/// The words, a space between them.
pub(super) const WORDS: &str = "\
    the of and to in a is that it was for on are as with be at by this had not from but or have an \
    they which one you were her all she there would their we him been has when who will more no if \
    out so said what up its about into than them can only other new some could time these two may \
    then do first any my now such like our over man me even most made after also did many before \
    must through back years where much your way well down should because each just those people \
    how too little state good very make world still own see men work long get here between both \
    life being under never day same another know while last might us great old year off come since \
    against go came right used take three states himself few house use during without again place \
    around however home small found thought went say part once general high upon school every does \
    got united left number course war until always away something fact though water less public \
    put think almost hand enough far took head yet government system better set told nothing night \
    end why called eyes find going look asked later knew point next program city business give \
    group toward young days let room word present side social given several order national \
    possible rather second face per among form important often things looked early white case \
    become large big need four within felt children along saw best church ever least power \
    development light thing seemed family interest want members mind country area others turned \
    although done open service certain kind problem began different door thus help sense means \
    whole matter itself york line human above company example available true local show five \
    history whether either gave today act feet across past quite taken anything having seen death \
    experience body week half really field car words already information tell college money shall \
    period action together keep free air moment making known future land common effect strong \
    behind result real political question office problems areas cannot control table able doing \
    level move six close study reason became minutes evidence person society tax heard themselves \
    full seems major west ten position sound cost change policy held child process soon surface \
    south market court class council modern building special central language brought community \
    century simple story below support east value leave type figure hours late department voice \
    north street meeting particular increase ground rate care morning idea stage river else simply \
    read board force working student outside hope run stood paper data page memory machine network \
    server request answer file record index update query thread signal channel window frame buffer \
    cursor stream packet socket driver kernel module handle object method error warning report \
    message letter reader writer editor author chapter library archive folder cluster storage \
    volume backup version release branch commit review patch testing sample measure weight height \
    length distance speed engine wheel bridge tunnel station airport harbour island mountain \
    valley forest garden flower animal horse doctor nurse patient hospital medicine disease health \
    energy electric nuclear metal copper silver golden yellow purple orange winter summer spring \
    autumn january march april june july august october november december monday tuesday friday \
    sunday hundred thousand million quarter percent average total amount balance account credit \
    payment invoice customer contract budget profit income salary worker union strike election \
    party leader president minister senator governor mayor police army soldier officer captain \
    weapon battle victory defeat peace treaty border nation capital village farmer harvest bread \
    coffee sugar butter chicken dinner kitchen ceiling corner carpet mirror picture camera \
    painting artist music concert theatre actor cinema novel poetry science physics chemistry \
    biology theory";
